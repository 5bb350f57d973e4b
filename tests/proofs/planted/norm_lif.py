"""Batch norms in LIF neurons: the layer, and networks whose norms are fused."""

from planted.bug import Bug

_LAYER, _NETWORK = "tests/nn/test_norm_lif.py", "tests/convert/test_fuse.py"
_FUNCTION = "tests/batch_norm_lif/test_batch_norm_lif.py"


def _bug(name: str, file: str, right: str, wrong: str, tests: str, test: str) -> Bug:
    return Bug(f"norm-lif-{name}", f"realspike_ops/{file}", right, wrong, tests, test)


def _call(name: str, right: str, wrong: str, test: str, tests: str = _LAYER) -> Bug:
    return _bug(name, "nn/neurons/batch_norm_call.py", right, wrong, tests, test)


def _current(name: str, right: str, wrong: str, test: str) -> Bug:
    return _bug(name, "nn/neurons/normed_current.py", right, wrong, _NETWORK, test)


BUGS = [
    _call("batches-are-not-counted", "count.add_(1)", "count.add_(0)", "by_hand or modes"),
    _call("average-is-not-cumulative", "1.0 / float(count)", "0.1", "modes_and_settings"),
    _call(
        "no-momentum-moves-by-a-tenth",
        "0.0 if momentum is None else momentum",
        "0.1 if momentum is None else momentum",
        "no_longer_tracked",
    ),
    _call(
        "statistics-that-are-not-tracked-move",
        "if training and not batch_norm.track_running_stats:",
        "if False:",
        "statistics_that_are_no_longer_tracked",
    ),
    _call(
        "hooks-of-neurons-do-not-run",
        "for module in (batch_norm, *neurons):",
        "for module in (batch_norm,):",
        "hooks_run or replaces_a_forward",
    ),
    _call(
        "backward-hooks-do-not-run",
        "        or module._backward_hooks\n",
        "",
        "hooks_run",
    ),
    _call(
        "a-replaced-forward-does-not-run",
        '        or "forward" in module.__dict__\n',
        "",
        "replaces_a_forward",
    ),
    _call("processes-are-not-asked", "return group if", "return None if", "two_processes"),
    _call(
        "a-repeated-current-counts-once",
        "_replace(n=T * statistics.n)",
        "_replace(n=statistics.n)",
        "the_encoding",
        _NETWORK,
    ),
    _bug(
        "strided-statistics-move-side-by-side",
        "functional/batch_norm_lif.py",
        "running.dtype == torch.float32 and running.is_contiguous()",
        "running.dtype == torch.float32",
        _FUNCTION,
        "move_where_they_lie",
    ),
    _bug(
        "a-residual-alone-has-no-gradient",
        "functional/batch_norm_lif.py",
        "if requires_gradient(x, residual, weight, bias",
        "if requires_gradient(x, weight, bias",
        _FUNCTION,
        "asked_for_alone",
    ),
    _bug(
        "tangents-vanish",
        "functional/batch_norm_lif.py",
        "bias=bias, amplitude=amplitude, decay=decay,\n",
        "bias=bias, decay=decay,\n",
        _LAYER,
        "tangents",
    ),
    _bug(
        "moves-of-statistics-are-not-counted",
        "ops/batch_norm_lif_autograd.py",
        "torch.autograd.graph.increment_version([tensor for",
        "list([tensor for",
        _FUNCTION,
        "move_before_backward",
    ),
    _bug(
        "the-op-has-no-gradient-of-its-state",
        "ops/batch_norm_lif_autograd.py",
        "grads = _gradients(ctx, grad_y, grad_v_last if ctx.keep_state else None)",
        "grads = _gradients(ctx, grad_y, None)",
        _FUNCTION,
        "compiled_training",
    ),
    _bug(
        "residual-is-forgotten",
        "nn/neurons/norm_lif.py",
        "return fire(call, residual, lif",
        "return fire(call, None, lif",
        _LAYER,
        "by_hand",
    ),
    _bug(
        "residual-is-normalised",
        "nn/neurons/norm_lif.py",
        "current = batch_norm(x)",
        "current = batch_norm(x if residual is None else x + residual)",
        _LAYER,
        "residuals_run_one_by_one",
    ),
    _bug(
        "a-norm-that-is-read-twice-is-fused",
        "convert/fuse.py",
        "if len(call) == 1 and isinstance",
        "if call and isinstance",
        _NETWORK,
        "left_as_it_is",
    ),
    _bug(
        "neurons-of-a-fused-norm-are-forgotten",
        "convert/fuse.py",
        "make_fused(norm, lifs)",
        "make_fused(norm, ())",
        _NETWORK,
        "backward_hooks or copies_states",
    ),
    _bug(
        "a-residual-takes-none-itself",
        "convert/fuse.py",
        "left |= firm or failed",
        "left |= failed",
        _NETWORK,
        "residual_of_a_norm_that_is_left",
    ),
    _bug(
        "the-example-trains",
        "convert/fuse.py",
        "copied, copies = copied_as_called(model)",
        "copied, copies = model, {m: m for m in model.modules()}",
        _NETWORK,
        "unfuse_and_the_example",
    ),
    _bug(
        "folding-sees-fused-norms",
        "reparam/trace/trace.py",
        "return unfuse(copied)",
        "return copied",
        _NETWORK,
        "folding_and_inspection",
    ),
    _current(
        "changes-in-place-are-not-seen",
        "if self._versions != _versions(self.call, self.residual):",
        "if False:",
        "changes_of_what_a_norm_read",
    ),
    _current(
        "gradients-go-on-where-they-stop",
        "if not torch.is_grad_enabled():\n        call = call.detached()",
        "if False:\n        call = call.detached()",
        "gradients_are_stopped",
    ),
    _current(
        "a-residual-in-place-has-a-gradient",
        "residual if torch.is_grad_enabled() else residual.detach()",
        "residual",
        "gradients_are_stopped",
    ),
    _current(
        "what-autograd-functions-return-is-taken",
        "if self.grad_fn is None:",
        "if True:",
        "checkpointing",
    ),
    _current(
        "what-autograd-functions-read-has-no-gradient",
        "self.register_hook(_refuse_gradient)",
        "pass",
        "past_pytorchs_functions",
    ),
    _current(
        "alpha-is-ignored",
        "follow is not None and not kwargs and",
        "follow is not None and",
        "left_as_it_is or alpha",
    ),
    _current(
        "residuals-are-broadcast",
        "return residual.shape == shape and residual.device",
        "return residual.device",
        "left_as_it_is",
    ),
    Bug(
        "fused-network-stays-fused",
        "python/realspike/train/fitting.py",
        "            unfuse(network)\n",
        "            pass\n",
        "tests/app/test_fusing.py",
        "by_themselves",
    ),
    Bug(
        "runs-are-not-fused",
        "python/realspike/train/module.py",
        "fuse(self.network, example)",
        "pass",
        "tests/app/test_fusing.py",
        "by_themselves",
    ),
    Bug(
        "a-run-does-not-go-on-unfused",
        "python/realspike/train/folder.py",
        "stored = stored.replaced(fuse=config.training.fuse)",
        "pass",
        "tests/app/test_fusing.py",
        "goes_on",
    ),
]
