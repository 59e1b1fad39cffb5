"""The registry opens what is configured, says what it could not, and serves all the same."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from backchannel.engines.registry import GROUP, EngineRegistry
from backchannel.engines.scripted import ScriptedEngine
from backchannel.errors import BackchannelError, Reason

PLUGINS = "third_party_engines"


class Parrot(ScriptedEngine):
    """What a third party might bring."""

    opened = False

    async def __aenter__(self) -> Parrot:
        self.opened = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.opened = False


class Broken(Parrot):
    async def __aenter__(self) -> Broken:
        raise OSError("no cage")


class Unavailable(Parrot):
    async def __aenter__(self) -> Unavailable:
        raise BackchannelError(Reason.ENGINE_UNAVAILABLE, "buy a cage")


def needs_a_cage(name: str, options: Mapping[str, object]) -> Parrot:
    if options != {"cage": "big"}:
        raise ValueError("the cage must be big")
    return Parrot(name=name)


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(PLUGINS)
    vars(module).update(
        parrot=lambda name, _: Parrot(name=name),
        stubborn=lambda *_: Parrot(name="parrot"),
        broken=lambda name, _: Broken(name=name),
        unavailable=lambda name, _: Unavailable(name=name),
        picky=needs_a_cage,
    )
    monkeypatch.setitem(sys.modules, PLUGINS, module)


def entry(attribute: str, name: str = "parrot") -> EntryPoint:
    return EntryPoint(name, f"{PLUGINS}:{attribute}", GROUP)


async def test_scripted_is_always_there() -> None:
    async with EngineRegistry({}) as registry:
        names = [name for name, _ in registry.models()]
        assert names == [
            f"scripted/{name}" for name in ("echo", "count", "tool", "tools", "fail", "stall")
        ]
        assert registry.default_model == "scripted/echo"
        engine, card, full_name = registry.resolve("")
        assert (engine.name, card.name, full_name) == ("scripted", "echo", "scripted/echo")
        assert registry.resolve("scripted/tool")[1].name == "tool"


@pytest.mark.parametrize(
    "model", ["scripted/parrot", "parrot/echo", "echo", "scripted", "/", "a/b/c"]
)
async def test_an_unknown_model_is_answered_with_those_there_are(model: str) -> None:
    async with EngineRegistry({}) as registry:
        with pytest.raises(BackchannelError, match="there are: scripted/echo") as caught:
            registry.resolve(model)
        assert caught.value.reason is Reason.MODEL_NOT_FOUND
        assert caught.value.field == "model"


async def test_a_third_partys_engine_is_opened_and_closed() -> None:
    async with EngineRegistry({"parrot": {}}, plugins=[entry("parrot")]) as registry:
        engine, _, full_name = registry.resolve("")
        assert full_name == "parrot/echo"
        assert isinstance(engine, Parrot)
        assert engine.opened
    assert not engine.opened


async def test_an_engine_that_is_not_configured_is_not_opened() -> None:
    async with EngineRegistry({}, plugins=[entry("broken")]) as registry:
        assert registry.problems == ()


async def test_the_default_can_be_chosen() -> None:
    async with EngineRegistry(
        {"parrot": {}}, default_model="scripted/count", plugins=[entry("parrot")]
    ) as registry:
        assert registry.default_model == "scripted/count"
        assert registry.resolve("")[2] == "scripted/count"


@pytest.mark.parametrize(
    ("attribute", "says"),
    [
        ("broken", "OSError: no cage"),
        ("unavailable", "buy a cage"),
        ("picky", "ValueError: the cage must be big"),
        ("missing", f"{PLUGINS}:missing.*AttributeError"),
    ],
)
async def test_a_broken_engine_is_told_and_the_others_serve(attribute: str, says: str) -> None:
    async with EngineRegistry({"parrot": {}}, plugins=[entry(attribute)]) as registry:
        (problem,) = registry.problems
        assert problem.engine == "parrot"
        assert re.search(says, problem.message)
        assert registry.default_model == "scripted/echo"
        with pytest.raises(BackchannelError, match="could not be started") as caught:
            registry.resolve("parrot/echo")
        assert caught.value.reason is Reason.MODEL_NOT_FOUND
        assert "cage" not in str(caught.value)  # Clients are not told the server's insides.


async def test_settings_reach_the_factory() -> None:
    async with EngineRegistry({"parrot": {"cage": "big"}}, plugins=[entry("picky")]) as registry:
        assert registry.problems == ()


async def test_one_adapter_makes_several_engines() -> None:
    settings = {
        "polly": {"adapter": "parrot", "cage": "big"},
        "parrot": {"cage": "big"},
    }
    async with EngineRegistry(settings, plugins=[entry("picky")]) as registry:
        assert registry.problems == ()
        polly, parrot = (registry.resolve(f"{name}/echo")[0] for name in ("polly", "parrot"))
        assert (polly.name, parrot.name) == ("polly", "parrot")
        assert polly is not parrot


async def test_an_engine_under_another_name_is_refused() -> None:
    async with EngineRegistry({"crow": {}}, plugins=[entry("stubborn", "crow")]) as registry:
        assert "calls itself 'parrot'" in registry.problems[0].message


async def test_a_built_in_name_cannot_be_taken() -> None:
    async with EngineRegistry({}, plugins=[entry("parrot", "scripted")]) as registry:
        assert type(registry.resolve("scripted/echo")[0]) is ScriptedEngine


async def test_an_engine_that_is_not_installed_stops_the_start() -> None:
    with pytest.raises(BackchannelError, match=r"'crow' is installed.*there are: llama") as caught:
        async with EngineRegistry({"crow": {}}, plugins=[]):
            pass
    assert caught.value.reason is Reason.ENGINE_UNAVAILABLE


async def test_a_default_that_is_not_there_stops_the_start_and_says_why() -> None:
    opening = EngineRegistry(
        {"parrot": {}}, default_model="parrot/echo", plugins=[entry("unavailable")]
    )
    with pytest.raises(BackchannelError, match="buy a cage") as caught:
        async with opening:
            pass
    assert caught.value.reason is Reason.MODEL_NOT_FOUND


async def test_engines_are_closed_when_the_start_fails() -> None:
    parrot = Parrot(name="parrot")
    vars(sys.modules[PLUGINS])["parrot"] = lambda *_: parrot
    with pytest.raises(BackchannelError):
        async with EngineRegistry(
            {"parrot": {}}, default_model="parrot/none", plugins=[entry("parrot")]
        ):
            pass
    assert not parrot.opened


async def test_without_its_library_llama_is_told_and_scripted_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)  # As where there is no wheel.
    async with EngineRegistry() as registry:
        (problem,) = registry.problems
        assert problem.engine == "llama"
        assert "xllamacpp" in problem.message
        assert registry.default_model == "scripted/echo"
