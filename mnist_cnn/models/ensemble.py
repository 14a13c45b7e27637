"""Several networks of one module as one network: the mean of their probabilities."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Float32

from mnist_cnn.models.apply import Variables, forward_scaled


class Ensemble(nn.Module):
    """R networks of the module `member`; the variables are theirs, stacked: [R, ...].

    One after the other is computed, with the bits that it has alone. Its logits are the logarithms
    of the mean probabilities, so that their softmax is that mean. It cannot be trained.
    """

    member: nn.Module
    or_none: bool = False  # of the loss "cross_entropy_or_none": "none" has the logit 0
    with_members: bool = False  # whether the members' logits follow its own: M = (1 + R) * K

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"]) -> Float32[Array, "B M"]:
        """The logits of images whose pixels are scaled to 0..1."""
        member = self.member.clone(parent=None)

        def logits_of(variables: Variables) -> Float32[Array, "B K"]:
            return forward_scaled(member, variables, images)

        each = lax.map(logits_of, dict(self.variables))
        mean = mean_logits(each, self.or_none)
        return jnp.concatenate([mean, *each], axis=-1) if self.with_members else mean


def mean_logits(each: Float32[Array, "R B K"], or_none: bool) -> Float32[Array, "B K"]:
    """Logits of the mean of R networks' probabilities, and of "none" if it is one more class."""
    count, _, classes = each.shape
    if or_none:
        each = jnp.pad(each, ((0, 0), (0, 0), (0, 1)))  # the logit of "none" is 0
    log_p = jax.nn.logsumexp(jax.nn.log_softmax(each), axis=0) - jnp.log(count)
    return log_p[:, :classes] - log_p[:, classes:] if or_none else log_p
