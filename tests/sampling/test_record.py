"""A run of iterate that is kept as data and gone on with elsewhere."""

import io

import pytest
import torch

from k_diffusion import sampling

SIGMAS = sampling.get_sigmas_karras(6, 0.1, 10.0)
#: A stop after so many steps.
STOP = 3


class Model:
    """A guided denoiser that counts its calls, and answers in one buffer."""

    def __init__(self):
        self.calls, self.buffer = 0, torch.empty(2, 3, 4, 4)

    def __call__(self, x, sigma, **cond):
        self.calls += 1
        return self.buffer.copy_(torch.tanh(x) / (1 + sigma.view(-1, 1, 1, 1) ** 2))

    def pair(self, x, sigma, **cond):
        answer = self(x, sigma).clone()
        return answer, answer * 0.9


def start():
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3)) * 10


def arguments(name):
    inputs = {'sigmas': SIGMAS, 'sigma_min': 0.1, 'sigma_max': 10.0, 'n': 12}
    return {key: inputs[key] for key in sampling.SAMPLERS[name].takes} | {'disable': True}


def walk(name, model, record=None, stop=None, edit=False, **options):
    states = []
    for state in sampling.iterate(
        name, model, start(), record=record, **arguments(name), **options
    ):
        if edit and state.i == 1:
            state.x = state.x * 0.5
        if edit and state.i == STOP - 1:
            state.x.mul_(0.9)
        states.append((state.i, state.x.clone(), state.nfe))
        if len(states) == stop:
            break
    return states


def through_a_file(record):
    file = io.BytesIO()
    torch.save(record.state_dict(), file)
    file.seek(0)
    return sampling.Record(torch.load(file, weights_only=True))


@pytest.mark.parametrize('edit', [False, True])
@pytest.mark.parametrize('name', sampling.SAMPLERS)
def test_a_run_goes_on_in_another_process_bit_for_bit(name, edit):
    torch.manual_seed(7)
    straight = walk(name, Model(), edit=edit)
    torch.manual_seed(7)
    record, first = sampling.Record(), Model()
    begun = walk(name, first, record, STOP, edit)
    loaded_record, second = through_a_file(record), Model()
    # The first part drew from the global generator, and the second draws its own part again: so the
    # seed is set once more.
    torch.manual_seed(7)
    rest = walk(name, second, loaded_record, None, edit)
    assert len(begun) + len(rest) == len(straight) and first.calls + second.calls == straight[-1][2]
    for (i, x, nfe), (j, y, nfe_2) in zip([*begun, *rest], straight):
        assert (i, nfe) == (j, nfe_2) and torch.equal(x, y)


def test_noise_that_was_drawn_is_in_the_record():
    """The noise of the steps before is that of the record, whatever the source gives now."""
    seeded = walk('euler_ancestral', Model(), seed=5)
    record = sampling.Record()
    walk('euler_ancestral', Model(), record, STOP, seed=5)
    assert len(record.noises) == STOP
    rest = walk('euler_ancestral', Model(), through_a_file(record), seed=5)
    assert torch.equal(rest[-1][1], seeded[-1][1])


def test_a_run_of_another_start_is_refused():
    record = sampling.Record()
    walk('euler', Model(), record, STOP)
    with pytest.raises(ValueError, match='x must be the start of the run in record'):
        next(sampling.iterate('euler', Model(), start() + 1, SIGMAS, record=record))
    for state in ({}, {'start': None}, 3, [1]):
        with pytest.raises(ValueError, match='state must be a result of Record.state_dict'):
            sampling.Record(state)
