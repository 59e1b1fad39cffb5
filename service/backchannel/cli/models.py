"""`backchannel models`: what can be talked to."""

from __future__ import annotations

from backchannel.cli.connect import DEFAULT_SERVER, Json, Server, connect, run


def models(server: Server = DEFAULT_SERVER, json: Json = False) -> None:
    """List the models of a server, the default first.

    **Examples**

    - `backchannel models`

    - `backchannel models --json | jq -r '.[].name'`
    """

    async def command() -> int:
        async with connect(server) as client:
            found = await client.models()
        if json:
            from backchannel.cli.output import print_json

            print_json(found)
            return 0
        from backchannel.cli.output import print_table

        rows = [
            [
                model.name + (" (default)" if number == 0 else ""),
                f"{model.max_context_tokens:,}" if model.max_context_tokens else "no limit",
                ", ".join(model.capabilities),
                model.description,
            ]
            for number, model in enumerate(found)
        ]
        print_table(["model", "context", "can", "about"], rows)
        return 0

    run(command(), server)
