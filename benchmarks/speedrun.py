"""How good a model is after a given time: Frechet distances of samples after equal seconds.

    python benchmarks/speedrun.py                                   the shipped demo against peers
    python benchmarks/speedrun.py --try wide 'model.channels=[32,96]' --try base
    python benchmarks/speedrun.py --task mnist --folder data/mnist
    python benchmarks/speedrun.py --task icons [--folder icons/] [--device cuda]

Contenders are the config of the task (--config for another one), the same with other values (--try
NAME KEY=VALUE ..., as often as wanted), and, with --peers, networks of other packages under the
same recipe. A contender's cost of a step is measured first, all contenders in turn, in processor
time (on a GPU in seconds with the device waited for); the run then takes as many steps as the
seconds hold, and its schedules end with it. Each (contender, seed) is kept in the file --out as
soon as it is done, so that the same command goes on where it stopped; the costs of a step and the
judges beside the file are kept too. Other values of --n, --guidance or --judge are other runs.

A cell is the mean over seeds and their standard deviation. The first extractor is the classifier
that `evaluate --evaluate-with classifier` trains, the second another one, trained longer on other
draws; of pictures without classes both tell by how many quarter turns a picture was rotated. Their
distances are hundredths of the total variance of the features of real pictures: the test split of
mnist, else the training pictures. --judge FILE.py adds the number `fd` of what its function
score(images, labels, size) returns.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _contenders import PEERS, installed, original_shapes
from torch import Tensor

import k_diffusion as K
from k_diffusion.config.overrides import change_config
from k_diffusion.core.files import write_json
from k_diffusion.core.images import from_bytes, round_to_bytes
from k_diffusion.core.memory import keep_freed_memory
from k_diffusion.core.modules import n_params
from k_diffusion.core.python_files import load_reference
from k_diffusion.core.tensor_cache import load_cache, save_cache
from k_diffusion.data import icons, open_dataset
from k_diffusion.evaluation import Classifier, fid, train_classifier
from k_diffusion.evaluation.classifier import RECIPE, content_digest, load_classifier

#: By task: the config and the seconds of a run.
TASKS = {
    'digits': ('config_demo', 60.0),
    'mnist': ('config_mnist_small', 300.0),
    'icons': ('config_icons', 600.0),
}
WARM, TIMED, ROUNDS = 8, 24, 3  # steps left out, steps timed, turns of each contender
SAMPLED_STEPS = 20
JUDGES = (600, 1500)  # training steps of each judge; its seed is its position


class Clock:
    """Seconds spent: of the processor, or of a GPU that is waited for."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self) -> float:
        if self.device == 'cpu':
            return time.process_time()
        torch.accelerator.synchronize()
        return time.perf_counter()


class Task:
    """A data set, the config that is the starting point, and the judges of its samples."""

    def __init__(self, args: argparse.Namespace, judges: Path) -> None:
        name, config, folder, device = args.task, args.config, args.folder, args.device
        shipped, self.seconds = TASKS[name]
        self.name, self.device = name, device
        path = config or K.config.shipped_config(shipped)
        changes = {} if folder is None or name == 'digits' else {'dataset.location': folder}
        self.config = change_config(json.loads(Path(path).read_text()), changes)
        self.own_images = icons(4096, size=32) if name == 'icons' and folder is None else None
        sections = K.config.sections_of(self.config)
        self.classes = 0 if self.own_images is not None else sections.dataset.num_classes
        self.shape = [sections.model.input_channels, *sections.model.input_size]
        learnt, labels = self._read(self.config)
        test_config = change_config(self.config, {'dataset.split': 'test'})
        real = self._read(test_config)[0] if name == 'mnist' else learnt
        kinds = self.classes or 4
        if not self.classes:
            learnt, labels = rotate(learnt)
        self.judges = [
            stored_judge(judges, learnt, labels, kinds, seed, steps)
            for seed, steps in enumerate(JUDGES)
        ]
        self.real = [features(judge, from_bytes(real)) for judge in self.judges]

    def _read(self, config: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return all pictures as uint8 [N, C, H, W] and their classes [N]."""
        if self.own_images is not None:
            return self.own_images, torch.zeros(len(self.own_images), dtype=torch.long)
        section = K.config.sections_of(config).dataset
        data = open_dataset(section, tuple(self.shape[1:]), self.shape[0])
        items = [data[i] for i in range(len(data))]
        return (
            torch.stack([item['image'] for item in items]),
            torch.tensor([int(item.get('class_cond', 0)) for item in items]),
        )

    def distances(self, images: Tensor, labels: Tensor) -> tuple[list[float], float]:
        """Return the distance by each judge, and the share of images that show their class."""
        features_by_judge = [features(judge, images) for judge in self.judges]
        scores = [
            100 * float(fid(mine, real)) / float(real.double().var(0).sum())
            for mine, real in zip(features_by_judge, self.real)
        ]
        right = (
            (self.judges[0].head(features_by_judge[0]).argmax(1) == labels).double().mean().item()
        )
        return scores, right if self.classes else float('nan')


def stored_judge(
    folder: Path, images: Tensor, labels: Tensor, kinds: int, seed: int, steps: int
) -> Classifier:
    """Load the judge of these pictures from a folder, or train and store it."""
    digest = content_digest(images, labels)
    path = folder / f'judge-{RECIPE}-{digest}-{seed}-{steps}.safetensors'
    height, width = images.shape[2:]
    if load_cache(path) is not None:
        return load_classifier(path, images.shape[1], (height, width), kinds)
    judge = train_classifier(images, labels, kinds, seed, steps)
    facts = {'accuracy': judge.accuracy, 'fingerprint': judge.fingerprint}
    save_cache(path, judge.state_dict(), facts)
    return judge


def rotate(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return each picture turned by 0 to 3 quarter turns in turn, and by how many."""
    turns = torch.arange(len(images)) % 4
    result = torch.empty_like(images)
    for k in range(4):
        result[turns == k] = images[turns == k].rot90(k, (2, 3))
    return result, turns


@torch.no_grad()
def features(judge: Classifier, images: Tensor) -> Tensor:
    """Return the features of pictures [N, C, H, W] in [-1, 1]."""
    return torch.cat([judge(part) for part in images.cpu().split(500)])


class Contender:
    """A config, and the network that takes the place of the config's where it has one."""

    def __init__(self, task: Task, name: str, config: dict[str, Any], peer: str = '') -> None:
        self.task, self.name, self.config, self.peer = task, name, config, peer
        text = json.dumps([config, peer, task.seconds], sort_keys=True)
        self.digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    def train(self, seed: int, steps: int, hooks: Sequence[Any] = ()) -> tuple[Any, int]:
        """Return the denoiser after so many steps, and the number of its parameters."""
        network = None
        if self.peer:
            torch.manual_seed(seed)
            network = PEERS[self.peer](self.task.shape[0], self.task.name, self.task.classes)
        with tempfile.TemporaryDirectory() as folder:
            run = K.train(
                config=self.config,
                network=network,
                dataset=self.task.own_images,
                name='speedrun',
                run_dir=folder,
                end_step=steps,
                seed=seed,
                device=self.task.device,
                demo_every=0,
                evaluate_n=0,
                report=False,
                num_workers=0,
                hooks=list(hooks),
            )
            if run.step != steps:  # a run that a signal stopped is not a result
                raise SystemExit(run.exit_status)
            return run.denoiser, n_params(run.denoiser.inner_model)


def step_seconds(contenders: Sequence[Contender], clock: Clock) -> dict[str, float]:
    """Return the median seconds of a training step of each, all trained in turn."""
    spent: dict[str, list[float]] = {c.name: [] for c in contenders}
    for _ in range(ROUNDS):
        for contender in contenders:
            times = list[float]()
            contender.train(0, WARM + TIMED, [lambda _, times=times: times.append(clock())])
            spent[contender.name] += [b - a for a, b in zip(times[WARM:], times[WARM + 1 :])]
    return {name: statistics.median(values) for name, values in spent.items()}


def measure(
    contender: Contender, seed: int, steps: int, n: int, scales: Sequence[float], judge: Any
) -> dict[str, Any]:
    """Train one contender with one seed and score its samples at each guidance scale."""
    task, clock = contender.task, Clock(contender.task.device)
    start = clock()
    denoiser, parameters = contender.train(seed, steps)
    row: dict[str, Any] = {'steps': steps, 'seconds': clock() - start, 'parameters': parameters}
    labels = torch.arange(n) % max(1, task.classes)
    sampling = contender.config.get('sampling', {})
    for scale in scales if task.classes else [1.0]:
        images = K.sample(
            denoiser,
            [n, *task.shape],
            SAMPLED_STEPS,
            sampler='dpmpp_2m',
            seeds=10_000 + seed,
            cond={'class_cond': labels} if task.classes else None,
            guidance=scale,
            null={'class_cond': task.classes} if scale != 1 else None,
            guidance_interval=sampling.get('guidance_interval') if scale != 1 else None,
            batch_size=250,
            device=task.device,
        )
        images = round_to_bytes(images).cpu()
        scores, right = task.distances(images, labels)
        if judge is not None:
            scores.append(float(judge(images, labels, size=task.shape[-1])['fd']))
        row[f'{scale:g}'] = {'distances': scores, 'right': right}
    return row


def cell(values: Sequence[float]) -> str:
    """Return the mean and the standard deviation of some values as text."""
    spread = f' ± {statistics.stdev(values):.2g}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.3g}{spread}'


def print_table(
    results: dict[str, Any], contenders: Sequence[Contender], args: argparse.Namespace
) -> None:
    """Print a row of a Markdown table for each contender and guidance scale."""
    print('\n| contender | parameters | steps | seconds | guidance | distances | shows its class |')
    print('|---' * 7 + '|')
    for contender in contenders:
        keys = [_row_key(contender, seed, args) for seed in args.seeds.split(',')]
        rows = [results['runs'][key] for key in keys if key in results['runs']]
        scales = [key for key in rows[0] if isinstance(rows[0][key], dict)] if rows else []
        for scale in scales:
            columns = list(zip(*(row[scale]['distances'] for row in rows)))
            print(
                f'| {contender.name} | {rows[0]["parameters"]:,} | {rows[0]["steps"]} | '
                f'{cell([row["seconds"] for row in rows])} | {scale} | '
                f'{", ".join(map(cell, columns))} | {cell([row[scale]["right"] for row in rows])} |'
            )


def _key(contender: Contender) -> str:
    return f'{contender.name} {contender.digest} '


def _row_key(contender: Contender, seed: int | str, args: argparse.Namespace) -> str:
    judge = ' judged' if args.judge else ''
    return f'{_key(contender)}seed {seed} {args.n} samples, guidance {args.guidance}{judge}'


def list_contenders(task: Task, args: argparse.Namespace) -> list[Contender]:
    """Return the contenders that the flags name, the task's config first."""
    contenders = [Contender(task, 'config', task.config)]
    for name, *changes in args.tried:
        contenders.append(Contender(task, name, change_config(task.config, changes)))
    for name in args.peers.split(',') if args.peers else []:
        if name == 'original':
            config = change_config(task.config, original_shapes(task.config))
            contenders.append(Contender(task, name, config))
        elif installed(name):
            contenders.append(Contender(task, name, task.config, name))
        else:
            print(f'{name} is left out: the package is not installed')
    return contenders


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--task', choices=tuple(TASKS), default='digits')
    parser.add_argument('--config', help="the config (default: the task's)")
    parser.add_argument('--folder', help='the folder of MNIST or of the icons')
    parser.add_argument(
        '--try', dest='tried', nargs='+', action='append', default=[], metavar='NAME KEY=VALUE'
    )
    parser.add_argument('--peers', default='azula,diffusers,original', help="'' for none")
    parser.add_argument('--seeds', default='0,1,2')
    parser.add_argument('--seconds', type=float, help="of a run (default: the task's)")
    parser.add_argument('--n', type=int, default=5000, help='how many samples')
    parser.add_argument('--guidance', default='1,2', help='scales of guidance, 1 is none')
    parser.add_argument('--judge', help='a Python file with a function score, trusted')
    parser.add_argument('--out', type=Path, help='default: runs/speedrun_TASK.json')
    parser.add_argument('--device', default='cpu')
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    keep_freed_memory()
    out = args.out or Path('runs') / f'speedrun_{args.task}.json'
    out.parent.mkdir(parents=True, exist_ok=True)
    task = Task(args, out.parent)
    task.seconds = args.seconds or task.seconds
    judge = load_reference(f'{args.judge}:score', 'judge', True) if args.judge else None
    results = json.loads(out.read_text()) if out.exists() else {'steps': {}, 'runs': {}}
    contenders = list_contenders(task, args)
    new = [c for c in contenders if _key(c) not in results['steps']]
    if new:
        costs = step_seconds(new, Clock(args.device))
        results['steps'].update({_key(c): round(task.seconds / costs[c.name]) for c in new})
        write_json(out, results)
    scales = [float(scale) for scale in args.guidance.split(',')]
    for seed in map(int, args.seeds.split(',')):
        for contender in contenders:
            key = _row_key(contender, seed, args)
            if key not in results['runs']:
                steps = results['steps'][_key(contender)]
                results['runs'][key] = measure(contender, seed, steps, args.n, scales, judge)
                write_json(out, results)
                print(key, json.dumps(results['runs'][key]), flush=True)
    print_table(results, contenders, args)


if __name__ == '__main__':
    main()
