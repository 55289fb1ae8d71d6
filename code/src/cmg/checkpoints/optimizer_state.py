"""Optimizer state in checkpoints: in published sections with published parameter numbers, or by name for other
parameters."""

import torch

from cmg.systems.state_dicts import rules
from cmg.utils.errors import InputError

ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")
STATE = {"Adam": ADAM_STATE, "AdamW": ADAM_STATE, "SGD": ()}      # state per parameter in torch's optimizers
NO_OPTIMIZER = "contains no optimizer state"
OWN_OPTIMIZER = "own_optimizer"     # section of the optimizer state of parameters without a published name


def _sections(system, optimizers):
    """Section of a file -> (torch optimizer, names of its groups), for the main optimizer and each auxiliary group."""
    main = [name for name, group in optimizers.groups.items() if not group.auxiliary]
    return {"optimizer": (optimizers.main, main)} | {
        system.auxiliary[name]: (optimizers.auxiliary, [name]) for name in optimizers.groups if name not in main}


def _published_order(system, names):
    """Published tensors of an optimizer section, given the names of its groups, ordered by their numbers in the
    section."""
    tensors = rules.layout(type(system), system.config)
    return [tensor for name in names for tensor in tensors if tensor.section == name and not tensor.is_buffer]


def optimizer_sections(system, optimizers):
    """Optimizer state in published sections with published parameter numbers, or by name for other parameters.

    Args:
        system: cmg.systems.base.System.
        optimizers: cmg.training.optim.Optimizers.

    Returns:
        section -> its contents.
    """
    result, own_state = {}, {}
    for section, (optimizer, names) in _sections(system, optimizers).items():
        order = _published_order(system, names)
        parameters = {ours: p for name in names for ours, p in optimizers.groups[name].parameters.items()}
        moved = {ours: {key: value.detach().cpu() for key, value in state.items() if value is not None}
                 for ours, p in parameters.items() if (state := optimizer.state.get(p)) and float(state.get("step", 1))}
        numbers = {tensor.ours[0]: number for number, tensor in enumerate(order) if tensor.ours}
        group = next(group for group in optimizer.param_groups if group["name"] == names[0])
        group = {key: value for key, value in group.items() if key not in ("params", "name")}
        group |= {"fused": None, "foreach": None, "capturable": False}     # these depend on the machine, not on the run
        result[section] = {"state": {number: moved[ours] for ours, number in numbers.items() if ours in moved},
                           "param_groups": [group | {"params": list(range(len(order)))}]}
        own = {ours: state for ours, state in moved.items() if ours not in numbers}
        own_state |= {section: own} if own else {}
    return result | ({OWN_OPTIMIZER: own_state} if own_state else {})


def is_optimizer(section):
    """Whether a section of a file contains optimizer state."""
    return section.startswith("optimizer") or section == OWN_OPTIMIZER


def load_optimizers(loaded, optimizers):
    """Load the optimizer sections of a file (see `optimizer_sections`) into `optimizers`.

    Raises:
        InputError: a section is missing, damaged, or belongs to another optimizer.
    """
    system = loaded.system
    if not any(map(is_optimizer, loaded.contents)):
        raise InputError(f"{loaded.path}: {NO_OPTIMIZER}; expected the newest checkpoint of its run, which --resume "
                         "auto finds; pretrain with --keep_optimizer all to save the state in every checkpoint")
    for section, (optimizer, names) in _sections(system, optimizers).items():
        parameters = {ours: p for name in names for ours, p in optimizers.groups[name].parameters.items()}
        try:
            stored = loaded.contents[section]["state"]
            groups = loaded.contents[section]["param_groups"]
            order = _published_order(system, names)
            if len(groups) != 1 or len(groups[0]["params"]) != len(order):
                raise InputError(f"{loaded.path}: {section} is for {sum(len(g['params']) for g in groups)} parameters; "
                                 f"expected one group of {len(order)}; this file cannot be resumed")
            found = {order[number].ours[0]: own for number, own in stored.items() if order[number].ours}
            found |= loaded.contents.get(OWN_OPTIMIZER, {}).get(section, {})
            for ours, own in found.items():
                _load_state(optimizer, parameters[ours], own, f"{loaded.path}: {section}: state of {ours}")
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise InputError(f"{loaded.path}: section {section} is missing or not the state of an optimizer ({error}); "
                             "this file cannot be resumed") from error


def _load_state(optimizer, parameter, stored, what):
    """Load the optimizer state of one parameter; `what` names it in messages.

    Raises:
        InputError: the state is damaged, or belongs to another kind of optimizer.
    """
    kind = type(optimizer).__name__
    expected = STATE.get(kind, stored.keys())
    if set(stored) != set(expected):
        raise InputError(f"{what} contains {', '.join(map(str, stored)) or 'nothing'}; {kind} stores "
                         f"{', '.join(expected) or 'nothing'}; resume with the --optimizer of that run")
    state, on_device = {}, optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
    for key, value in stored.items():
        value = torch.as_tensor(value, dtype=torch.float32) if key == "step" else value
        if not rules.is_plain(value) or value.shape != (() if key == "step" else parameter.shape):
            raise InputError(f"{what} has the wrong shape or type; the file is damaged and cannot be resumed")
        # use the memory format of the parameter, because the fused kernels iterate over both in parallel
        state[key] = value.to(parameter.device if on_device else "cpu", copy=True) if key == "step" else \
            torch.empty_like(parameter.detach()).copy_(value)
    optimizer.state[parameter] = state
