"""Small sound recipes, to be changed and refused."""

from copy import deepcopy
from pathlib import Path

import yaml

from hetero.errors import ConfigError
from hetero.experiment.deploy.lab_site import lab_topology
from hetero.experiment.recipe.load import parse_recipe
from hetero.experiment.recipe.recipe import FRONT, Serving
from hetero.workload.named import load_workload

EXAMPLES = sorted((Path(__file__).parent / "example_recipes").glob("*.yaml"))
_FIELDS = {path.stem: yaml.safe_load(path.read_text()) for path in EXAMPLES}


def fields(kind="serving"):
    return deepcopy(_FIELDS[kind])


def changed(place, value, kind="serving"):
    """An example with something else at a dotted place, where "-" deletes what is there."""
    found = part = fields(kind)
    *way, last = [int(name) if name.isdigit() else name for name in place.split(".")]
    for name in way:
        part = part[name]
    if value == "-":
        del part[last]
    else:
        part[last] = value
    return found


def refusals(found):
    """The lines a user would see, none if it is sound."""
    try:
        parse_recipe(found)
    except ConfigError as error:
        return str(error).split("\n")
    return []


def check_as_a_run_would(recipe):
    """Its loads are read, and its lab is laid out on a machine with cores enough."""
    if not isinstance(recipe, Serving):
        return
    for load in (recipe.load, recipe.beside):
        if load is not None:
            assert load_workload(load).draw(0, num_requests=1, num_sessions=1, rate=1.0).sessions
    if recipe.cluster.lab is not None:
        cores = [[2 * number, 2 * number + 1] for number in range(len(recipe.cluster.lab.hosts))]
        topology = lab_topology("x", recipe.cluster.lab, cores)
        assert {host.name for host in topology.hosts} == {FRONT, *recipe.cluster.lab.hosts}
