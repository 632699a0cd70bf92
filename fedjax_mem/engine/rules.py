"""Robust rules that treat each coordinate by itself, with the coordinates divided over devices."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fedjax_mem.core import Context, Layer, Message, Metrics, Rule, Stage, Tree, tree


def divided_side(layer: Layer, mesh: Mesh) -> Stage:
  """Returns the cohort side of a layer, its coordinates divided among the devices.

  The side stays as it is on one device, or if its `Rule` does not state `by_coordinate`. Before it
  every device has the whole messages of some clients; divided, it gets some coordinates of all.

  Args:
    layer: one with a cohort side.
    mesh: the devices.
  """
  stage = layer.sides['cohort']
  rule = stage.fact(Rule)
  if mesh.size == 1 or rule is None or not rule.by_coordinate:
    return stage

  def divided(ctx: Context, stack: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    flat = tree.ravel(stack.update, 1)
    flat = jnp.pad(flat, ((0, 0), (0, -flat.shape[1] % mesh.size)))
    # Decided on whole rows: a device that sees only the finite part of a row must ignore it, too.
    fine = jnp.isfinite(flat).all(1)
    weight = jnp.where(fine, stack.weight, 0)

    def part(
      whole: tuple[Context, jax.Array, Tree], flat: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, Tree, Metrics]]:
      known, weight, state = whole
      new, state, metrics = stage.apply(
        known._replace(spec=ctx.spec), Message(flat, weight, {}), state
      )
      return new.update, (new.weight, state, metrics)

    split, everywhere = PartitionSpec(None, mesh.axis_names), PartitionSpec()
    flat, (weight, state, metrics) = jax.shard_map(
      part,
      mesh=mesh,
      in_specs=(everywhere, split),
      out_specs=(split, everywhere),
      check_vma=False,
    )((ctx._replace(spec=None), weight, state), flat)
    update = tree.unravel(flat, stack.update, 1)
    return stack._replace(update=update, weight=weight), state, metrics

  return stage._replace(apply=divided)
