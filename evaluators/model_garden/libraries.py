"""Imports TensorFlow and Model Garden."""

import importlib
import importlib.util
import pathlib
import sys
import sysconfig

from evaluators.protocol import Refusal, one_line
from evaluators.versions import version_of

COMPARED_VERSIONS = ("tensorflow", "tf_keras", "tf_models_official", "pycocotools", "numpy")
# What registers the experiments of official.vision, as its trainer imports it.
REGISTRY = "official.vision.registry_imports"
OLDEST = "2.13.2"


def import_libraries():
    """Imports what every evaluation needs and returns the versions by name.

    Raises:
        Refusal: something cannot be imported here.
    """
    tensorflow = _import("tensorflow", "no_tensorflow")
    # Whatever a trainer's operative_config.gin may name.
    _import("official.core.train_lib", "no_model_garden")
    _require_trainer()
    _import(REGISTRY, "no_model_garden")
    tensorflow.get_logger().setLevel("WARNING")
    import numpy

    return {
        "python": "{}.{}.{}".format(*sys.version_info[:3]),
        "tensorflow": tensorflow.__version__,
        "tf_keras": version_of("tf-keras"),
        "tf_models_official": version_of("tf-models-official", "tf-models-nightly"),
        "pycocotools": version_of("pycocotools"),
        "numpy": numpy.__version__,
    }


def _require_trainer():
    """Refuses a Model Garden of the time before official.vision had a trainer."""
    try:
        there = importlib.util.find_spec(REGISTRY)
    except ImportError:
        there = None
    if there is None:
        raise Refusal(
            "no_model_garden",
            "tf-models-official {} in {} has no official.vision.train".format(
                version_of("tf-models-official", "tf-models-nightly"), sys.executable
            ),
            "give --python the interpreter of the environment that trains; the oldest version that"
            " was run is {}".format(OLDEST),
        )


def import_users_own(names, original=lambda path: path):
    """Imports what registers experiments of the user's own: modules, or files of Python.

    What these import in turn is looked for where the trainer finds it too: in the folder in which
    it was started, and beside a file.

    Args:
        names: of modules and files.
        original: gives what the user calls a file, which may be a copy.

    Returns:
        The files of all that came from outside of Python and its packages, and of `names`.

    Raises:
        Refusal: one of them cannot be imported.
    """
    if not names:
        return []
    beside = [pathlib.Path(original(one)).resolve().parent for one in names if _is_file(one)]
    sys.path += map(str, [pathlib.Path.cwd(), *beside])
    before = set(sys.modules)
    own = []
    for name in names:
        try:
            own.append(_import_file(name) if _is_file(name) else importlib.import_module(name))
        except (Exception, SystemExit) as error:  # the user's own code raises anything
            raise Refusal(
                "bad_garden_import",
                "garden_import ({}) cannot be imported: {}: {}".format(
                    name, type(error).__name__, one_line(error)
                ),
                "name what the trainer imports: a module on its PYTHONPATH, or a file",
            ) from error
    packages = tuple(sysconfig.get_paths().values())
    files = {getattr(one, "__file__", None) for one in own}
    for name in set(sys.modules) - before:
        path = getattr(sys.modules[name], "__file__", None)
        if path and not path.startswith(packages):
            files.add(path)
    return sorted(filter(None, files))


def _is_file(name):
    return name.endswith(".py")


def _import_file(path):
    name = "garden_import_{}".format(pathlib.Path(path).stem)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _import(module, code):
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken environment raises anything, not only ImportError
        state = "cannot be imported in"
        if isinstance(error, ModuleNotFoundError) and module.startswith(str(error.name)):
            state = "is not installed in"
        raise Refusal(
            code,
            "{} {} {}: {}: {}".format(module, state, sys.executable, type(error).__name__, error),
            "give --python the interpreter of the environment that trains",
        ) from error
