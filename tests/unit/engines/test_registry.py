"""The registry opens what is configured, says what it could not, and serves all the same."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from backchannel.engines.protocol import Capability, ModelCard, Prompt
from backchannel.engines.registry import DEFAULT_ENGINES, GROUP, EngineRegistry
from backchannel.engines.routing import CANNOT, DOWN
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


class Sleepy(Parrot):
    """An upstream that is not up yet: it opens, and has no models."""

    awake = False

    def models(self) -> Sequence[ModelCard]:
        return super().models() if self.awake else []


class Breaking(Parrot):
    broken = False

    def models(self) -> Sequence[ModelCard]:
        if self.broken:
            raise RuntimeError("secret")
        return super().models()


def two(**settings: object) -> dict[str, dict[str, object]]:
    return {"polly": {"adapter": "parrot", **settings}, "parrot": {}}


async def test_limits_are_the_registrys_and_not_the_adapters() -> None:
    # As the environment gives them, and as a file does.
    settings = {"parrot": {"max_parallel": "3", "max_waiting": 0, "cage": "big"}}
    async with EngineRegistry(settings, plugins=[entry("picky")]) as registry:
        target = registry.resolve("parrot/echo")
        assert (target.max_parallel, target.max_waiting) == (3, 0)
        scripted = registry.resolve("scripted/echo")
        assert (scripted.max_parallel, scripted.max_waiting) == (0, None)


@pytest.mark.parametrize(
    ("engines", "aliases", "says"),
    [
        ({"parrot": {"max_parallel": "many"}}, {}, "engine_options.parrot.max_parallel: .*'many'"),
        ({"parrot": {"max_waiting": -1}}, {}, "engine_options.parrot.max_waiting: .*'-1'"),
        ({"parrot": {"max_parallel": True}}, {}, "engine_options.parrot.max_parallel: .*'True'"),
        ({"parrot": {"adapter": 7}}, {}, "engine_options.parrot.adapter: 7"),
        ({"scripted": {"adapter": "parrot"}}, {}, "engine_options.scripted.adapter: 'parrot'"),
        ({"a/b": {}}, {}, "'a/b' cannot be an engine's name"),
        ({}, {"a/b": ["scripted/echo"]}, "model_aliases.a/b: .*no slash"),
        ({}, {"fast": []}, "model_aliases.fast: name at least one"),
        ({}, {"fast": ["echo"]}, "model_aliases.fast: 'echo' is no model; write engine/name"),
        ({}, {"fast": ["scripted/echo"] * 2}, "model_aliases.fast: .*twice"),
        ({}, {"fast": ["crow/echo"]}, "model_aliases.fast: .*engine crow, .* there are: scripted"),
    ],
)
def test_settings_that_make_no_sense_are_named(
    engines: dict[str, dict[str, object]], aliases: dict[str, list[str]], says: str
) -> None:
    with pytest.raises(BackchannelError, match=says) as caught:
        EngineRegistry(engines, aliases=aliases, plugins=[entry("parrot")])
    assert caught.value.reason is Reason.FIELD_INVALID


async def test_an_alias_is_listed_first_with_its_targets_and_what_any_of_them_can() -> None:
    aliases = {"fast": ["polly/count", "scripted/tool"]}
    async with EngineRegistry(two(), aliases=aliases, plugins=[entry("parrot")]) as registry:
        name, card = registry.models()[0]
        assert (name, card.description) == ("fast", "Asks polly/count, then scripted/tool.")
        assert Capability.TOOLS in card.capabilities
        assert registry.default_model == "polly/echo"
        route = registry.route("fast")
        assert [target.name for target in route.targets] == ["polly/count", "scripted/tool"]


async def test_an_alias_can_be_the_default() -> None:
    aliases = {"fast": ["scripted/count"]}
    async with EngineRegistry({}, aliases=aliases, default_model="fast") as registry:
        assert registry.route("").name == "fast"
        assert registry.check("", Prompt("", "", ())) == "fast"


async def test_one_target_that_can_is_enough_and_none_is_told_by_name() -> None:
    aliases = {"any": ["polly/echo", "scripted/tool"], "tools": ["scripted/tool", "parrot/tools"]}
    async with EngineRegistry(two(), aliases=aliases, plugins=[entry("parrot")]) as registry:
        prompt = Prompt("", "", ())  # The models that call tools want at least one.
        assert registry.check("any", prompt) == "any"
        with pytest.raises(BackchannelError) as caught:
            registry.check("tools", prompt)
        error = caught.value
        assert (error.reason, error.field) == (Reason.FIELD_REQUIRED, "tools")
        assert "scripted/tool: " in error.message
        assert "parrot/tools: " in error.message


async def test_an_engine_without_models_is_waited_for() -> None:
    sleepy = Sleepy(name="parrot")
    vars(sys.modules[PLUGINS])["sleepy"] = lambda *_: sleepy
    aliases = {"fast": ["parrot/echo", "scripted/echo"], "lone": ["parrot/echo"]}
    async with EngineRegistry(
        {"parrot": {}}, aliases=aliases, plugins=[entry("sleepy")]
    ) as registry:
        assert [problem.subject for problem in registry.problems] == [
            "parrot/echo, of the alias fast,",
            "parrot/echo, of the alias lone,",
        ]
        # Nobody is given another engine than the one that was configured.
        assert registry.default_model == ""
        for model in ("", "parrot/echo", "lone"):
            with pytest.raises(BackchannelError) as caught:
                registry.route(model)
            assert caught.value.reason is Reason.ENGINE_UNAVAILABLE
            assert caught.value.retry_after_s
        route = registry.route("fast")
        assert [target.name for target in route.targets] == ["scripted/echo"]
        assert [name for name, _ in route.absent] == ["parrot/echo"]
        about = dict(registry.models())["fast"].description
        assert about == "Asks parrot/echo (not there now), then scripted/echo."
        sleepy.awake = True
        assert registry.default_model == "parrot/echo"
        assert len(registry.route("fast").targets) == 2


async def test_a_default_whose_engine_has_no_models_yet_does_not_stop_the_start() -> None:
    vars(sys.modules[PLUGINS])["sleepy"] = lambda *_: Sleepy(name="parrot")
    async with EngineRegistry(
        {"parrot": {}}, default_model="parrot/echo", plugins=[entry("sleepy")]
    ) as registry:
        (problem,) = registry.problems
        assert problem.subject == "parrot/echo"
        assert registry.default_model == "parrot/echo"


async def test_an_engine_that_breaks_later_takes_no_other_along(
    caplog: pytest.LogCaptureFixture,
) -> None:
    breaking = Breaking(name="parrot")
    vars(sys.modules[PLUGINS])["breaking"] = lambda *_: breaking
    async with EngineRegistry({"parrot": {}}, plugins=[entry("breaking")]) as registry:
        breaking.broken = True
        assert {name.partition("/")[0] for name, _ in registry.models()} == {"scripted"}
        assert registry.route("scripted/echo").targets
        assert "engine parrot cannot list its models: RuntimeError" in caplog.text
        assert "secret" not in caplog.text


def test_every_failure_of_an_engine_is_followed_by_the_next_target_but_a_refusal() -> None:
    of_engines = {reason for reason in Reason if reason.startswith(("ENGINE_", "UPSTREAM_"))}
    assert of_engines - DOWN == {Reason.UPSTREAM_REFUSED}
    assert not DOWN & CANNOT
