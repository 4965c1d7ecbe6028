"""AdamW in plain torch: the meaning of the op (Loshchilov and Hutter, 2019, arXiv:1711.05101)."""

import torch


@torch.no_grad()
def step(
    params, grads, exp_avgs, exp_avg_sqs, lr, beta1, beta2, eps, weight_decay, step, grad_scale, copies=()
):
    """One step in place; `copies`, if any, get the parameters in their own type."""
    for p, grad, m, v in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        g = grad.to(p.dtype) * grad_scale
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        denominator = (v / (1 - beta2**step)).sqrt_().add_(eps)
        p.mul_(1 - lr * weight_decay).addcdiv_(m, denominator, value=-lr / (1 - beta1**step))
    for copy, p in zip(copies, params, strict=False):
        copy.copy_(p)


def grad_norm(grads):
    """Euclidean norm of all tensors taken as one vector."""
    return sum(grad.double().square().sum().item() for grad in grads) ** 0.5
