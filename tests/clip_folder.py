"""A tiny CLIPModel of transformers with a word tokenizer, as a folder; and its training on the
shipped digits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def make_clip(folder, words, size=16, channels=1, width=64, layers=2, train=None):
    """Writes the folder; `train(model, tokens_of)` may teach the model first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    vocabulary = {
        '<pad>': 0,
        '<start>': 1,
        '<end>': 2,
        '<unknown>': 3,
        **{word: 4 + i for i, word in enumerate(words)},
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token='<unknown>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single='<start> $A <end>', special_tokens=[('<start>', 1), ('<end>', 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token='<pad>',
        bos_token='<start>',
        eos_token='<end>',
        unk_token='<unknown>',
    )
    tower = {
        'hidden_size': width,
        'intermediate_size': 2 * width,
        'num_hidden_layers': layers,
        'num_attention_heads': 4,
    }
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={
                **tower,
                'num_hidden_layers': 1,
                'vocab_size': len(vocabulary),
                'max_position_embeddings': 16,
                'pad_token_id': 0,
                'bos_token_id': 1,
                'eos_token_id': 2,
            },
            vision_config={**tower, 'image_size': size, 'patch_size': 4, 'num_channels': channels},
            projection_dim=width,
        )
    )
    if train is not None:
        train(model, fast)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def taught_digits(captions, images, labels, steps=300, batch=128):
    """Contrastive training of such a model; captions: ten lists of sentences."""
    from k_diffusion.core.pretrained import CLIP_NORMALISATION, _tensor

    mean, std = (sum(values) / 3 for values in CLIP_NORMALISATION)

    def train(model, tokenizer):
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3)

        def ids(text):
            return tokenizer(text, return_tensors='pt', padding='max_length', max_length=12)[
                'input_ids'
            ][0]

        tokens = [[ids(caption) for caption in each] for each in captions]
        for step in range(steps):
            for group in optimizer.param_groups:
                group['lr'] = 1.5e-3 * min(1, (step + 1) / 30, (steps - step) / (steps / 2))
            indices = torch.randint(len(images), (batch,))
            pictures = images[indices].roll(
                torch.randint(-1, 2, (2,)).tolist(), (2, 3)
            ) + torch.rand(()) * 0.3 * torch.randn(batch, 1, 16, 16)
            said = torch.stack([tokens[d][torch.randint(len(tokens[d]), ())] for d in range(10)])
            a = F.normalize(
                _tensor(model.get_image_features(pixel_values=((pictures + 1) / 2 - mean) / std)),
                dim=1,
            )
            b = F.normalize(_tensor(model.get_text_features(input_ids=said)), dim=1)
            loss = F.cross_entropy(a @ b.T * 15, labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return train
