"""The registry opens what is configured, says what it could not, and serves all the same."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from backchannel.engines.registry import DEFAULT_ENGINES, GROUP, EngineRegistry
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
        target = registry.route("").targets[0]
        assert (target.engine.name, target.card.name) == ("scripted", "echo")
        assert target.name == "scripted/echo"
        assert registry.resolve("scripted/tool").card.name == "tool"


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
        route = registry.route("")
        engine = route.targets[0].engine
        assert route.name == "parrot/echo"
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
        assert registry.route("").name == "scripted/count"


@pytest.mark.parametrize(
    ("attribute", "says"),
    [
        ("broken", "OSError: no cage"),
        ("unavailable", "buy a cage"),
        ("picky", "ValueError: the cage must be big"),
        ("missing", f"{PLUGINS}:missing.*AttributeError"),
    ],
)
async def test_an_engine_that_was_asked_for_and_is_broken_stops_the_start(
    attribute: str, says: str
) -> None:
    with pytest.raises(BackchannelError, match=says) as caught:
        async with EngineRegistry({"parrot": {}}, plugins=[entry(attribute)]):
            pass
    assert caught.value.reason is Reason.ENGINE_UNAVAILABLE
    assert str(caught.value).startswith("the engine parrot cannot be started: ")


async def test_every_engine_that_stops_the_start_has_its_line() -> None:
    settings = {"polly": {"adapter": "parrot"}, "parrot": {}}
    with pytest.raises(BackchannelError) as caught:
        async with EngineRegistry(settings, plugins=[entry("broken")]):
            pass
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "the engine polly cannot be started",
        "the engine parrot cannot be started",
    ]


async def test_an_engine_that_was_only_tried_is_told_and_the_others_serve() -> None:
    plugins = [entry("unavailable")]
    async with EngineRegistry({"parrot": {}}, optional=["parrot"], plugins=plugins) as registry:
        (problem,) = registry.problems
        assert (problem.subject, problem.message) == ("parrot", "buy a cage")
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
        polly, parrot = (registry.resolve(f"{name}/echo").engine for name in ("polly", "parrot"))
        assert (polly.name, parrot.name) == ("polly", "parrot")
        assert polly is not parrot


async def test_an_engine_under_another_name_is_refused() -> None:
    with pytest.raises(BackchannelError, match="calls itself 'parrot'"):
        async with EngineRegistry({"crow": {}}, plugins=[entry("stubborn", "crow")]):
            pass


async def test_a_built_in_name_cannot_be_taken() -> None:
    async with EngineRegistry({}, plugins=[entry("parrot", "scripted")]) as registry:
        assert type(registry.resolve("scripted/echo").engine) is ScriptedEngine


async def test_an_engine_that_is_not_installed_stops_the_start() -> None:
    with pytest.raises(BackchannelError, match=r"'crow' is installed.*there are: llama") as caught:
        async with EngineRegistry({"crow": {}}, plugins=[]):
            pass
    assert caught.value.reason is Reason.ENGINE_UNAVAILABLE


async def test_a_default_that_is_not_there_stops_the_start_and_says_why() -> None:
    opening = EngineRegistry(
        {"parrot": {}},
        default_model="parrot/echo",
        optional=["parrot"],
        plugins=[entry("unavailable")],
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
    async with EngineRegistry(optional=DEFAULT_ENGINES) as registry:
        (problem,) = registry.problems
        assert problem.subject == "llama"
        assert "xllamacpp" in problem.message
        assert registry.default_model == "scripted/echo"
