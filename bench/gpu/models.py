"""The models whose steps are measured."""

import torch

from bench.gpu.case import BF16, Place
from pyengine.model import ModelConfig, Transformer

# the shapes of Qwen3-0.6B, of an 8B Llama, and of a model as the default run trains it
SIZES = {
    "1M": ModelConfig(vocab_size=2048, hidden_size=128, layers=4, heads=4, kv_heads=2, head_dim=32,
                      intermediate_size=384, max_position_embeddings=2048),
    "0.6B": ModelConfig(vocab_size=151_936, hidden_size=1024, layers=28, heads=16, kv_heads=8, head_dim=128,
                        intermediate_size=3072, max_position_embeddings=2048),
    "8B": ModelConfig(vocab_size=128_256, hidden_size=4096, layers=32, heads=32, kv_heads=8, head_dim=128,
                      intermediate_size=14_336, max_position_embeddings=2048, qk_norm=False, tie_embeddings=False),
}  # fmt: skip
TINY = ModelConfig(vocab_size=61, hidden_size=32, layers=1, heads=4, kv_heads=2, head_dim=16, intermediate_size=48,
                   max_position_embeddings=256)  # fmt: skip


def random_model(place: Place, name: str) -> Transformer:
    """Weights drawn on the device: on the host billions of them would take minutes."""
    model = Transformer(TINY if place.dry else SIZES[name], None, place.dtype(BF16), place.device)
    make = torch.Generator(device=place.device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 0.6 * parameter.shape[1] ** -0.5, generator=make)
        model.embedding.mul_(3)
    return model.requires_grad_(False)
