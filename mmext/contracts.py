"""What a component may answer: the only list of the questions that tools, folding, surgery and hooks ask.

A component implements the methods of a contract and need not derive from it. Generic code asks with ``isinstance(module,
Contract)``, or goes through a model with :func:`find`. A question that is not listed here is not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

__all__ = [
    'AttendsTokens',
    'CannotFold',
    'DescribesSignal',
    'DrawsLinear',
    'EvolvesKernel',
    'Exemplified',
    'ExportsSurface',
    'FitsWhole',
    'Folds',
    'FreezesStatistics',
    'FusesNorms',
    'GivesOverview',
    'GivesPath',
    'GivesStatisticsSample',
    'HasDeployedConfig',
    'HasFrequency',
    'HasOpenChoices',
    'HasSpatialWeights',
    'IsAffine',
    'IsComplex',
    'KeepsOptionalState',
    'KeepsRunState',
    'MakesInputs',
    'PlacesNorm',
    'Projects',
    'RunsInSteps',
    'RunsInserted',
    'ServesTesting',
    'ShowsPredictions',
    'StandsFor',
    'StartsFromKernel',
    'SwitchesToDeploy',
    'TakesCompanionScale',
    'TakesOneSize',
    'TellsLayerDepth',
    'TellsOptimOptions',
    'WarnsOnDeploy',
    'example_of',
    'find',
    'optional_state',
    'shown_by',
]

T = TypeVar('T')
F = TypeVar('F', bound=Callable)


@runtime_checkable
class Exemplified(Protocol):
    """A component that shows itself: every registered one, unless it needs no argument.

    ``example`` holds the smallest arguments with which the component does its work. A subclass names only what differs
    from its base, see :func:`example_of`. Tests, benchmarks and the catalogue read it.

    A conv layer may say more as data. ``typical``: the arguments of the place where its paper uses it, for benchmarks;
    ``depthwise=True`` among them stands for as many groups as channels. ``loads_kernel_exactly``: whether it computes with
    a given kernel as it is, or comes near. ``serves`` and ``refuses``:
    the kinds of layers and the arguments that it has a kernel for, and has not.
    """

    example: Mapping[str, Any]


@runtime_checkable
class Folds(Protocol):
    """A layer with a plain form.

    Beside the method, a class may say ``fold_in_deploy = False``: the plain form computes the same and costs more, so the
    layer stays.
    """

    def fold(self) -> nn.Module:
        """Return the plain layer that computes the same in eval mode."""


@runtime_checkable
class SwitchesToDeploy(Protocol):
    """A module that folds in place; the hosts' own re-parameterized blocks have this name for it."""

    def switch_to_deploy(self) -> None:
        """Replace what folds by its plain form."""


@runtime_checkable
class FusesNorms(Protocol):
    """A module that knows better than the generic code where its norms go."""

    def fuse_norms(self) -> None:
        """Put every norm that is an affine map in eval mode into the layers beside it."""


@runtime_checkable
class IsAffine(Protocol):
    """A norm that is an affine map per channel in eval mode, at least sometimes."""

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """Return scale and shift, (C,) each, or None while it is no such map."""


@runtime_checkable
class HasDeployedConfig(Protocol):
    """A component whose folded form has a config of its own."""

    @staticmethod
    def deployed_cfg(cfg: Mapping[str, Any], fuse_bn: bool) -> dict[str, Any]:
        """Return the config of what folding makes of ``cfg``."""


@runtime_checkable
class WarnsOnDeploy(Protocol):
    """A module that has something to say to the user when it is deployed as it is."""

    def deploy_warning(self) -> str | None:
        """Return a reason, or None. Reasons that are equal are counted and shown once."""


@runtime_checkable
class StartsFromKernel(Protocol):
    """A conv layer that keeps no kernel and yet starts from a given one, of a checkpoint or of the layer it replaces."""

    #: Whether this very layer does; a subclass may inherit the methods and leave a layer plain.
    loads_kernel: bool
    #: Whether a plain bias is taken with it, by a layer that has none of that shape.
    loads_bias: bool

    def load_kernel(self, kernel: Tensor) -> None:
        """Set the parameters so that the layer computes with ``kernel``, or comes as near as its form allows."""

    def can_load_kernel(self, shape: Sequence[int]) -> bool:
        """Tell whether a kernel of this shape can be taken."""


@runtime_checkable
class StandsFor(Protocol):
    """A layer that is no convolution and reads its arguments from the one whose place it takes; asked of the class."""

    @classmethod
    def arguments_from(cls, old: nn.Module) -> dict[str, Any]:
        """Return the arguments with which the layer fits where ``old`` stands; AttributeError where ``old`` is another."""


@runtime_checkable
class PlacesNorm(Protocol):
    """A conv layer that takes the norm of its block as ``norm_cfg`` and puts it inside; asked of the class."""

    places_norm: bool


@runtime_checkable
class AttendsTokens(Protocol):
    """An attention module over a grid of tokens, whose weights can be looked at."""

    #: Tokens before those of the grid.
    num_extra_tokens: int

    def size(self, tokens: int) -> tuple[int, int]:
        """Return the size of the grid that so many tokens make up."""

    def dense_kernel(self, x: Tensor) -> Tensor:
        """Return the weights for the tokens ``x``, (B, heads, N, N)."""


@runtime_checkable
class EvolvesKernel(Protocol):
    """An operator whose kernel is a function of the input or of the position, so that it is looked at for an input.

    Three flags say as data what its kernel depends on. The catalogue prints them, and pictures are arranged by them.
    """

    #: Whether the kernel differs from output pixel to output pixel.
    spatial_specific: bool
    #: Whether every channel has a kernel of its own.
    channel_specific: bool
    #: Whether the kernel depends on the input.
    dynamic: bool

    def evolution_kernel(self, x: Tensor) -> Any:
        """Return the kernel of ``x``; its ``aggregate`` is linear in what it aggregates."""

    def features(self, x: Tensor) -> Tensor:
        """Return what the kernel aggregates."""


@runtime_checkable
class Projects(Protocol):
    """A module with parameters that must stay inside a set; :class:`mmext.ProjectionHook` asks after every step."""

    def project_parameters(self) -> None:
        """Move the parameters to the nearest point of their set, in place."""


@runtime_checkable
class RunsInserted(Protocol):
    """A module with blocks that surgery put at it: what comes out is not what its class alone computes."""

    #: Name of each block, and where it stands: ``'after'``, ``'before'`` or ``'around'``.
    inserted: Sequence[tuple[str, str]]


@runtime_checkable
class RunsInSteps(Protocol):
    """A backbone whose last map is that of modules in series; :class:`mmext.PIIP` puts exchanges between them."""

    def steps(self) -> Sequence[nn.Module]:
        """Return the stem, then the blocks in their order."""


@runtime_checkable
class TellsOptimOptions(Protocol):
    """A module whose parameters want learning rates or decays of their own."""

    def optim_options(self) -> Mapping[str, Mapping[str, float]]:
        """Return the options by the local name of the parameter; :class:`mmext.LayerOptionsConstructor` reads them."""


@runtime_checkable
class TellsLayerDepth(Protocol):
    """A backbone that can be trained with a rate of its own for each depth; mmpretrain's have this name for it, too."""

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the depth of a parameter of this module, and the number of depths."""


@runtime_checkable
class MakesInputs(Protocol):
    """A model that does not take images."""

    #: The name of the input in an exported file, and the axes whose length is free, by name.
    input_name: str
    input_axes: Mapping[int, str]
    #: What to do where an exporter refuses the model.
    export_hint: str

    def example_inputs(self, height: int, width: int) -> Tensor:
        """Return what ``forward`` takes for a picture of this size."""


@runtime_checkable
class KeepsOptionalState(Protocol):
    """A module whose state has entries only sometimes; a checkpoint may hold them or not."""

    def optional_state(self) -> Sequence[str]:
        """Return their local names."""


@runtime_checkable
class FitsWhole(Protocol):
    """A model that a checkpoint fits whole or not at all; no part of it can be used for another task."""

    fits_whole: bool


@runtime_checkable
class FreezesStatistics(Protocol):
    """A model whose evaluation depends on statistics that are measured on a given input."""

    def freeze_stats(self, inputs: Tensor) -> Any:
        """Measure them on ``inputs`` and set eval mode."""


@runtime_checkable
class TakesCompanionScale(Protocol):
    """A module whose loss beside the model's own is multiplied by a number that a schedule sets."""

    companion_scale: float


@runtime_checkable
class TakesOneSize(Protocol):
    """A network that takes images of one size only, which it was built for."""

    #: Height and width.
    fixed_size: tuple[int, int]


@runtime_checkable
class HasSpatialWeights(Protocol):
    """A network whose pixels exchange information by one known matrix; ``spatial_weights.py`` draws it."""

    def spatial_factors(self, stage: int, channel: int = 0) -> tuple[Tensor, Tensor]:
        """Return what a stage does along the columns and the rows of a channel, (H, H) and (W, W)."""

    def spatial_weights(self, stage: int, channel: int = 0) -> Tensor:
        """Return the weight between any two pixels of a channel, (H W, H W)."""


@runtime_checkable
class HasOpenChoices(Protocol):
    """A model whose config may leave values open, to be chosen before the model is built."""

    @staticmethod
    def prepare(cfg: Any, read: Callable[[], Mapping[str, Any]] | None = None) -> None:
        """Fill in the open values of ``cfg``, the config of a whole run, in place.

        With ``read``, which returns the checkpoint, take those that it was trained with.
        """


@runtime_checkable
class ServesTesting(Protocol):
    """A hook that is of use in the test of a deployed model; the others leave its config."""

    serves_testing: bool


@runtime_checkable
class KeepsRunState(Protocol):
    """A hook that counts or keeps something from one iteration to the next, which a resumed run needs."""

    def run_state(self, runner: Any) -> Mapping[str, Any]:
        """Return it as tensors and plain values; all processes call it."""

    def set_run_state(self, runner: Any, state: Mapping[str, Any]) -> None:
        """Take what :meth:`run_state` returned, after ``before_train``."""


@runtime_checkable
class ShowsPredictions(Protocol):
    """A model that no host can draw, and that has a hook for it."""

    @staticmethod
    def show_predictions(cfg: Any, folder: str) -> None:
        """Change ``cfg``, the config of a whole run, so that a test writes its pictures into ``folder``."""


@runtime_checkable
class DescribesSignal(Protocol):
    """A coordinate network that generates weights from what its signal looks like."""

    awaits_signal: bool

    def set_signal(self, image: Tensor) -> None:
        """Take the description of ``image``, (C, H, W)."""


@runtime_checkable
class ExportsSurface(Protocol):
    """A model that represents a shape, or something that has one."""

    def export_surface(
        self, path: Any, resolution: int = 128, level: float = 0.0, color: bool = False
    ) -> tuple[int, int, float]:
        """Write the surface as a mesh, and return how many vertices and faces it has, and the volume inside."""


@runtime_checkable
class GivesStatisticsSample(Protocol):
    """A data set of one signal that draws its items; the norms of a network are measured on a draw that it gives."""

    def statistics_sample(self) -> Tensor:
        """Return coordinates distributed as in training, the same at each call, without a change of what is drawn next."""


@runtime_checkable
class GivesOverview(Protocol):
    """A data set of one signal that shows the signal as pictures."""

    def overview(self) -> Tensor:
        """Return pictures (V, C, H, W) in [0, 1]."""


@runtime_checkable
class GivesPath(Protocol):
    """A data set of a scene that knows where a camera can go around it."""

    def path(self, frames: int) -> Iterator[Tensor]:
        """Yield the rays (H, W, 6) of cameras on a closed way."""


@runtime_checkable
class HasFrequency(Protocol):
    """A part of a coordinate network whose frequency can be chosen from the signal; asked of the class."""

    #: The argument, and the values to choose from.
    frequency: tuple[str, Sequence[float]]


@runtime_checkable
class DrawsLinear(Protocol):
    """An activation that knows how the linear layer before it starts."""

    def init_linear(self, linear: nn.Linear, first: bool) -> None:
        """Draw the layer; ``first`` says whether it takes the coordinates."""


@runtime_checkable
class IsComplex(Protocol):
    """An activation with complex values; asked of the class."""

    complex_valued: bool


@runtime_checkable
class CannotFold(Protocol):
    """A layer that may have no plain form; the whole model is then refused."""

    #: The reason, as the end of a sentence; None where this very layer folds or stays.
    cannot_fold: str | None


def find(model: nn.Module, contract: type[T]) -> Iterator[tuple[str, T]]:
    """Go through the modules of ``model`` that answer ``contract``, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, contract):
            yield name, module


def optional_state(model: nn.Module) -> set[str]:
    """Return the names of entries that the state of ``model`` has only sometimes."""
    return {
        f'{name}.{entry}'.lstrip('.')
        for name, module in find(model, KeepsOptionalState)
        for entry in module.optional_state()
    }


def example_of(component: Any) -> dict[str, Any]:
    """Return the smallest arguments that show ``component`` at work; none where it needs none."""
    layers = reversed(getattr(component, '__mro__', [component]))
    return {key: value for layer in layers for key, value in vars(layer).get('example', {}).items()}


def shown_by(**example: Any) -> Callable[[F], F]:
    """Give a registered function its example, as a class has one."""

    def decorate(function: F) -> F:
        vars(function)['example'] = example
        return function

    return decorate
