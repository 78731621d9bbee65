"""A class of every document above its thoughts, known for some documents and summed out for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ltm_pyro.errors import LTMError
from ltm_pyro.priors.base import Prior

__all__ = ["SupervisedPrior"]


class SupervisedPrior(Prior):
    r"""A document's class y, and thoughts that are normal about the class's own mean.

    .. math:: y \sim \operatorname{Cat}(\pi), \qquad z \mid y \sim N(m_y, \operatorname{diag} s_y^2)

    Where the class is known, the bound is on log p(x, y); elsewhere all classes are run through at once and it is on
    log p(x) = log Σ_y p(x, y). ``Posterior.discrete()["y"]`` are the probabilities of a document's classes.

    Latent sites: ``y`` (enumerated) and ``z`` with event shape (L, n, H); observed where classes are known: ``label``.
    Slow parameters: ``logits`` (K,), ``mu`` (K, L, n, H), ``log_scale`` (K, L, n, H).

    Args:
        shape: (L, n, H) of the thoughts.
        classes: K.
        spread: standard deviation of the starts of the classes' means around 0.

    Raises:
        LTMError: ``classes`` is below 1.

    References: Kingma et al. (2014), Semi-Supervised Learning with Deep Generative Models.
    """

    takes_labels: ClassVar[bool] = True

    def __init__(self, shape: tuple[int, int, int], *, classes: int = 2, spread: float = 0.1):
        super().__init__(shape)
        if classes < 1:
            raise LTMError(f"a supervised prior needs 1 class or more, got classes = {classes}")
        self.logits = nn.Parameter(torch.zeros(classes))
        self.mu = nn.Parameter(spread * torch.randn(classes, *shape))
        self.log_scale = nn.Parameter(torch.zeros(classes, *shape))

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Every class of the data needs one of the prior's; the prior may have more."""
        if len(class_names) > len(self.logits):
            raise LTMError(
                f"the data have {len(class_names)} classes ({', '.join(class_names)}), the supervised prior "
                f"{len(self.logits)}: set prior.classes={len(class_names)}"
            )

    def forward(
        self, batch_size: int, labels: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "*particles batch layer slot hidden"]:
        """Samples ``y`` (…, B), which is the label where there is one, and ``z`` (…, B, L, n, H)."""
        logits = self.logits.log_softmax(-1).expand(batch_size, -1)
        if labels is not None:
            known = labels >= 0
            index = labels.clamp(min=0)
            with pyro.poutine.mask(mask=cast(torch.BoolTensor, known)):  # log p(y) counts here; y itself is certain
                pyro.sample("label", dist.Categorical(logits=logits, validate_args=False), obs=index)
            certain = F.one_hot(index, len(self.logits)).to(logits.dtype).log()
            logits = torch.where(known[:, None], certain, logits)
        kinds = dist.Categorical(logits=logits, validate_args=False)
        y = pyro.sample("y", kinds, infer={"enumerate": "parallel"})
        z: Tensor = pyro.sample("z", dist.Normal(self.mu[y], self.log_scale[y].exp(), validate_args=False).to_event(3))
        return z
