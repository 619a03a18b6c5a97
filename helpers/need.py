"""Optional packages: one clear sentence instead of a traceback."""

import importlib

INSTALL = {
    "faiss": "faiss-cpu",
    "huggingface_hub": "huggingface-hub",
    "llama_cpp": "llama-cpp-python",
    "plotly.graph_objects": "plotly",
    "pynvml": "nvidia-ml-py",
    "tqdm.auto": "tqdm",
}


class MissingPackage(ImportError):
    """A package that only some rooms need is not installed; the message says what to type."""


def need(module, purpose):
    """The imported `module`, or `MissingPackage` with the line that installs it.

    >>> need("json", "read a table").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = INSTALL.get(module, module)
        raise MissingPackage(
            f"To {purpose}, the package {package} is needed and could not be imported ({error}). "
            f"Install it with: python -m pip install {package}"
        ) from error
