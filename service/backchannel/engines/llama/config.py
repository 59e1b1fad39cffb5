"""Which models the embedded engine loads, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from backchannel.engines.settings import faults_of
from backchannel.errors import BackchannelError, Reason

HOUSE: Final = "house"
"""The name of the model that comes with the package."""

HOUSE_FILE: Final = Path(__file__).parent.parent / "models" / "house.gguf"

_Tag = Annotated[str, Field(min_length=1, max_length=64)]


@dataclass(frozen=True, slots=True)
class LlamaModel:
    """A model to load.

    Attributes:
        name: The part after `llama/`.
        path: The GGUF file. Empty for the bundled model, which is called `house`.
        n_ctx: Context of one conversation in tokens, prompt and answer together; no more than the
            model was trained for is used.
        n_parallel: How many answers are made at once; the memory for all of them is taken at load.
        n_threads: Threads that compute. For a tiny model one is fastest.
        n_gpu_layers: How many layers a GPU takes; -1 for all that fit, 0 for none.
        cache_ram_mib: Memory for conversations that lost their place to others.
        temperature: Where a session does not say; None for llama.cpp's own default.
        chat_template: A Jinja file, or the template itself; empty for the one in the GGUF file.
        reasoning_tags: Between which two the model reasons, where its chat template knows nothing
            of it.
        allow_grammars: Whether sessions may bring grammars of their own.
        description: For ListModels; empty for one made from the file's facts.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")]
    path: str = ""
    n_ctx: Annotated[int, Field(ge=64, le=2**24)] = 4096
    n_parallel: Annotated[int, Field(ge=1, le=256)] = 4
    n_threads: Annotated[int, Field(ge=1, le=1024)] = 4
    n_gpu_layers: Annotated[int, Field(ge=-1, le=10_000)] = 0
    cache_ram_mib: Annotated[int, Field(ge=0, le=2**20)] = 512
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    chat_template: str = ""
    reasoning_tags: tuple[_Tag, _Tag] | None = None
    allow_grammars: bool = True
    description: str = ""

    @property
    def file(self) -> Path:
        """Where the GGUF file is."""
        return Path(self.path).expanduser() if self.path else HOUSE_FILE

    def template(self) -> str:
        """The chat template that takes the place of the file's own; empty for none.

        Raises:
            BackchannelError: `ENGINE_UNAVAILABLE`, if it is in a file that cannot be read.
        """
        if not self.chat_template or "{" in self.chat_template:
            return self.chat_template
        path = Path(self.chat_template).expanduser()
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise BackchannelError(
                Reason.ENGINE_UNAVAILABLE,
                f"chat_template of llama model {self.name}: {path} cannot be read ({why}); name a "
                "Jinja file that exists, or write the template itself",
            ) from error


HOUSE_MODEL: Final = LlamaModel(
    name=HOUSE,
    n_ctx=2048,
    n_parallel=16,
    n_threads=1,
    cache_ram_mib=64,
    temperature=0.0,
    description=(
        "A tiny model that comes with Backchannel: it chats about Backchannel, and calls a "
        "calculator and a clock. It knows nothing else and is easily wrong; for real work name "
        "another."
    ),
)


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The settings of the engine `llama`.

    Attributes:
        models: What to load, the engine's default first.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    models: Annotated[tuple[LlamaModel, ...], Field(min_length=1)] = (HOUSE_MODEL,)

    @classmethod
    def of(cls, options: Mapping[str, object]) -> LlamaConfig:
        """Read settings as they stand in a configuration file.

        Raises:
            BackchannelError: `FIELD_INVALID`, naming each setting that is wrong.
        """
        try:
            config = TypeAdapter(cls).validate_python(dict(options))
        except ValidationError as error:
            raise BackchannelError(
                Reason.FIELD_INVALID, f"settings of the engine llama: {faults_of(error, cls)}"
            ) from error
        return cls(tuple(map(_completed, config.models)))

    def __post_init__(self) -> None:
        """Refuse two models of one name, and one without a file.

        Raises:
            BackchannelError: `FIELD_INVALID`.
        """
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise BackchannelError(
                Reason.FIELD_DUPLICATE, "settings of the engine llama: two models have one name"
            )
        for model in self.models:
            if not model.path and model.name != HOUSE:
                raise BackchannelError(
                    Reason.FIELD_INVALID,
                    f"settings of the engine llama: the model {model.name} needs a path to its "
                    f"GGUF file; only {HOUSE} is bundled",
                )


def _completed(model: LlamaModel) -> LlamaModel:
    """The bundled model under its bare name has its own settings, not everybody's defaults."""
    return HOUSE_MODEL if model == LlamaModel(HOUSE) else model
