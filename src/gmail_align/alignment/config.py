"""Configuration of alignment and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat

from gmail_align.config import Config
from gmail_align.encoders.config import EncoderLayout, LoraSettings, TextKind
from gmail_align.training.config import OptimConfig

Select = Literal[
    "loss",
    "align",
    "text_generated",
    "text_real",
    "objective",
    "margin",
    "paired_cosine",
    "generated_real_r1",
    "retrieval",
    "transfer",
    "zeroshot",
]
"""What a guard can go by."""
FIGURES = ("margin", "paired_cosine", "generated_real_r1", "retrieval", "transfer", "zeroshot")
"""Those that are maximised; the others are losses."""


class AlignWeights(Config):
    """Weight of each loss term; 0 turns a term off and saves what it would have computed."""

    align: float = Field(default=1.0, ge=0)
    """Eq. 1: generated images against the frozen features of the real images of their captions."""
    text_generated: float = Field(default=1.0, ge=0)
    """Contrastive loss between generated images and the frozen features of their captions."""
    text_real: float = Field(default=1.0, ge=0)
    """Contrastive loss between real images, through the ``real`` route, and their captions."""
    distill_real: float = Field(default=0.0, ge=0)
    """1 - cosine between real images through the ``real`` route and their frozen features."""
    distill_generated: float = Field(default=0.0, ge=0)
    """1 - cosine between generated images and the frozen features of their real images. Unlike Eq.
    1, it also closes an offset that all generated images share."""
    norm: float = Field(default=0.0, ge=0)
    """How far norms of generated features are from the mean norm of frozen real ones, relatively;
    for consumers that do not normalise."""
    patch: float = Field(default=0.0, ge=0)
    """Eq. 1 between means of patch tokens before the last layer, generated against frozen real
    ones. LLaVA reads those tokens, and not the pooled feature."""


class AlignConfig(Config):
    """Alignment of generated images to the frozen features of real ones (GMAIL Sec. 3, App. A)."""

    method: Literal["gmail", "mean_shift", "shift_scale", "coral"] = "gmail"
    """How generated images are aligned: ``gmail`` trains; the other three train nothing and match
    statistics. ``mean_shift`` gives generated features the mean of frozen real ones,
    ``shift_scale`` the mean and the total variance, and ``coral`` the mean and the covariance.
    These three use only the guard's settings besides."""
    weights: AlignWeights = AlignWeights()
    """Weight of each loss term."""
    temperature: float = Field(default=0.07, gt=0)
    """Temperature of Eq. 1; the text terms use CLIP's own scale."""
    text_loss: TextKind | None = None
    """How images are compared with texts: CLIP's ``softmax``, SigLIP's ``sigmoid`` or Long-CLIP's
    ``long_short`` (whole features against captions, the batch's first 32 principal components
    against their first sentences). None: as the base was trained, by its own scale and bias."""
    target: Literal["frozen", "real_head", "real"] = Field(
        "frozen", exclude_if=lambda route: route == "frozen"
    )
    """Route by which Eq. 1 reads real images: ``frozen`` (the plain model, as in Alg. 1),
    ``real_head`` (Fig. 1 trains a projection) or ``real`` (the deployed route). The guard always
    compares with the frozen model."""
    stop_gradient: bool = Field(True, exclude_if=bool)
    """Whether Eq. 1 trains generated features alone when ``target`` is ``real_head`` or
    ``real``."""
    learn_temperature: bool = False
    """Whether the temperature of Eq. 1 is trained, from ``temperature`` on and never below 0.01.
    The guard always compares at ``temperature``."""
    direction: Literal["g2r", "r2g", "both"] = "g2r"
    """Which side gives the rows of Eq. 1; ``g2r`` is the paper's."""
    positives: Literal["mask", "sum"] = "mask"
    """How pairs of one batch with the same real image or caption are treated: ``mask`` drops them
    from the denominator, ``sum`` counts them as positives."""
    lora: LoraSettings = LoraSettings()
    """The adapter."""
    encoder: EncoderLayout = EncoderLayout()
    """What is trained (adapter, whole tower, heads), what routes share, and the kind of heads."""
    dual_heads: bool = True
    """Whether real and generated images have a head each (Tab. 9), or share one."""
    optim: OptimConfig = OptimConfig()
    """Optimisation."""
    data: Literal["synthetic", "real", "mixed"] = "synthetic"
    """What the ``generated`` route is trained on (Tab. 9): generated images, the real images of
    the same captions in their place, or both."""
    real_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of real images where ``data`` is ``mixed``."""
    lr_heads: float | None = Field(None, gt=0, exclude_if=lambda rate: rate is None)
    """Peak learning rate of the heads; by default ``optim.lr``, as the paper has one rate for
    all."""
    phases: Literal["joint", "lora_then_heads"] = Field(
        "joint", exclude_if=lambda phases: phases == "joint"
    )
    """Whether adapter and heads are trained together, or the adapter first and then the heads
    alone (App. A gives the projections 50,000 steps of their own). One schedule spans both."""
    lora_steps: int | None = Field(None, ge=1, exclude_if=lambda steps: steps is None)
    """Steps of the adapter under ``phases = "lora_then_heads"``; by default half of
    ``optim.steps``."""
    batch_size: int = Field(default=256, ge=2)
    """Pairs a step, over all processes; every one is compared with every other."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Pairs whose images go through the encoder at a time; by default the whole batch. A smaller
    number bounds memory and costs one more forward pass. The gradient stays that of the whole
    batch."""
    loss_chunk: int | None = Field(default=None, ge=1)
    """Rows of the table of similarities that are in memory at a time; by default all."""
    holdout: float = Field(default=0.1, gt=0, lt=1)
    """Share of the real images, with all their pairs, that is held out for the guard."""
    holdout_limit: int = Field(default=1000, ge=2)
    """Most real images that are held out."""
    select: Select = "transfer"
    """What picks the step on the held-out pairs.

    A figure is maximised. ``transfer`` says what carries over from generated images to real ones,
    each by its own route. Where classes are known, a probe learns from generated images, and its
    accuracy on real ones counts. Elsewhere it is the R@1 between real and generated images, both
    ways; equal captions count as one. ``margin`` is the paired minus the unpaired cosine.
    ``retrieval`` is the R@1 of real images and texts. ``zeroshot`` is the accuracy of real images,
    where classes are known.

    A loss is minimised. ``loss`` is that of Eq. 1 where it is trained, else of the first text term
    that is. ``objective`` is the weighted sum of all. Losses are compared at their best temperature
    from the trained one upwards, so an encoder cannot win by being less confident alone."""
    keep_real: Annotated[float, Field(ge=0, le=1)] | Literal["noise"] | None = "noise"
    """How much retrieval (R@1) of held-out real images the deployed route may lose; a step that
    loses more is never kept. ``noise`` allows what lies within the 95% interval, a number such as
    0.02 that much, and None anything."""
    apply: Literal["beyond_noise", "best", "always"] = "beyond_noise"
    """When the picked step is applied: if its held-out gain is ``beyond_noise``, if its score is
    the ``best``, or ``always``. ``beyond_noise`` needs six held-out real images, and a 95% interval
    of the gain over the plain model that lies above 0. Where the guard looks at ``transfer``, the
    gain over a shift of the means has to lie above 0 too. ``always`` is for training-free methods
    that serve as baselines."""
    strengths: tuple[PositiveFloat, ...] = ()
    """Points between the plain CLIP (0) and the picked step (1) that are tried after training. The
    best on the held-out pairs is kept."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the vision tower; heads and losses are always fp32."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gmail": {},  # all terms
        # The paper's printed loss.
        "eq1_only": {"weights": {"text_generated": 0.0, "text_real": 0.0}},
        # The control that the paper lacks: the same adapter and generated head, trained on
        # generated images and their captions, without any real image: not even the guard asks one.
        "lora_only": {
            "weights": {"align": 0.0, "text_real": 0.0},
            "select": "loss",
            "keep_real": None,
        },
        # Generated features are also drawn to the very place of the frozen real ones.
        "distilled": {"weights": {"distill_generated": 1.0}},
        "full": {"encoder": {"tune": "full"}},  # the whole tower instead of an adapter (Tab. 11)
        "heads_only": {"encoder": {"tune": "none"}},  # the trunk stays as it is
        "separate": {"encoder": {"trunk": "separate"}},  # real images have their own adapter
        "llava": {"weights": {"patch": 1.0}},  # also the patch tokens that LLaVA reads
    }

    @property
    def guarded(self) -> str:
        """The loss or the figure that picks the step."""
        if self.select != "loss":
            return self.select
        terms = ("align", "text_generated", "text_real")
        return next((term for term in terms if getattr(self.weights, term) > 0), "objective")

    @property
    def beats_shift(self) -> bool:
        """Whether the kept step has to beat a shift of the means, too."""
        trained = self.method == "gmail" and self.apply == "beyond_noise"
        return trained and self.guarded == "transfer"


class ScratchConfig(Config):
    """Training of a CLIP from random weights (Radford et al. 2021)."""

    optim: OptimConfig = OptimConfig(lr=1e-3, schedule="cosine", warmup=200, weight_decay=0.05)
    """Optimisation."""
    batch_size: int = Field(default=128, ge=2)
    """Image-caption pairs a step, over all processes."""
    positives: Literal["mask", "sum"] = "mask"
    """How pairs of one batch with the same image or caption are treated: ``mask`` leaves them out
    of the denominator, ``sum`` counts them as positives."""
    holdout: float = Field(default=0.05, gt=0, lt=1)
    """Share of the images, with all their captions, that is held out to pick the step."""
    holdout_limit: int = Field(default=1000, ge=2)
    """Most images that are held out."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of both towers; the loss is always fp32."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
