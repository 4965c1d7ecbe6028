"""AdamW on the CPU: lists of addresses for csrc/cpu/adamw.cpp."""

from array import array

from .. import _native


def addresses(tensors) -> array:
    """The addresses of tensors of one type, as a list that C++ reads."""
    return array("q", [_native.address(t, tensors[0].dtype, t.numel()) for t in tensors])


def step(
    params, grads, exp_avgs, exp_avg_sqs, lr, beta1, beta2, eps, weight_decay, step, grad_scale, copies=()
):
    lists = [addresses(tensors) for tensors in (params, grads, exp_avgs, exp_avg_sqs, copies)]
    sizes = array("q", [p.numel() for p in params])
    _native.kernel("adamw_step", grads[0].dtype)(
        *(items.buffer_info()[0] if items else 0 for items in (*lists, sizes)),
        len(params), lr, beta1, beta2, eps, weight_decay, step, grad_scale, _native.threads(),
    )  # fmt: skip


def grad_norm(grads):
    lists = addresses(grads), array("q", [g.numel() for g in grads])
    total = array("d", [0.0])
    pointers = (items.buffer_info()[0] for items in lists)
    _native.kernel("sum_of_squares", grads[0].dtype)(
        *pointers, len(grads), total.buffer_info()[0], _native.threads()
    )
    return total[0] ** 0.5
