"""Identity latents: cuts of a graph beyond its activations (mathematics.md, section 1)."""

from __future__ import annotations

from torch import fx

from pursuitify.compiler.graph.classify import Site, Sites, Value, leading_to


def transparent(site: Site) -> bool:
    """Whether the node is a parameter-free unary map, inlined into every reader."""
    if site.value is not Value.AFFINE or site.unary is None or site.rule is None:
        return False
    if site.rule.kind == "linear":
        return True
    constants = [o for o in site.call.operands if o is not site.unary] if site.call else []
    return site.rule.kind in {"product", "join"} and not any(_parameter(c) for c in constants)


def _parameter(operand: object) -> bool:
    """Whether a constant operand is, or comes from, a tensor the model holds."""
    if not isinstance(operand, fx.Node):
        return False
    return operand.op == "get_attr" or any(n.op == "get_attr" for n in operand.all_input_nodes)


def _consumers(node: fx.Node, sites: Sites) -> list[fx.Node | None]:
    """Return the nodes that read a value, through transparent chains; None stands for the head."""
    found: list[fx.Node | None] = []
    for user in node.users:
        if user.op == "output":
            found.append(None)
            continue
        site = sites[user]
        count = site.operands.count(node)
        if count == 0 or site.value is Value.FROZEN:
            if site.value is Value.OTHER:
                found.append(None)
        elif transparent(site):
            found.extend(_consumers(user, sites))
        else:
            found.extend([user] * count)
    return found


def find_cuts(sites: Sites) -> set[fx.Node]:
    """Return the nodes that become identity latents (mathematics.md, section 1, cases 2 and 3)."""
    leads = leading_to((n for n, s in sites.items() if s.value is Value.LATENT), sites)
    cuts: set[fx.Node] = set()
    weighted: dict[fx.Node, bool] = {}
    joins: dict[fx.Node, int] = {}
    for node, site in sites.items():
        if site.value is not Value.AFFINE or site.rule is None:
            continue
        operands = [o for o in site.operands if o is not None]
        kind = site.rule.kind
        weighted[node] = kind == "weighted" or any(weighted.get(o, False) for o in operands)
        joins[node] = max(joins.get(o, 0) for o in operands) + (len(operands) > 1)
        if transparent(site):
            continue
        readers = _consumers(node, sites)
        feeds = any(r is not None and is_weighted(sites[r]) for r in readers)
        shared = len(readers) > 1 and any(
            r is not None and (sites[r].value is Value.LATENT or r in leads) for r in readers
        )
        if (weighted[node] and feeds) or (shared and (weighted[node] or joins[node] > 1)):
            cuts.add(node)
            weighted[node], joins[node] = False, 0
    return cuts


def is_weighted(site: Site) -> bool:
    """Whether the node is a weighted operator on an affine value."""
    return site.rule is not None and site.rule.kind == "weighted" and site.value is Value.AFFINE
