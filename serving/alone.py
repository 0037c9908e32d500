"""One `berth gateway` from its config to its end: door, engines started elsewhere, drain."""

from collections.abc import Callable

from gateway.app import Gateway
from serving import door
from serving.announcing import Say, say_door
from serving.door_config import door_settings
from serving.elsewhere import Elsewhere
from serving.environment import Environment
from serving.front import FrontConfig
from serving.signals import Signals
from serving.telemetry import telemetry


async def run(
    config: FrontConfig,
    environment: Environment,
    say: Say,
    api_key: str | None,
    again: Callable[[], FrontConfig] | None,
) -> int:
    """Serve until told to stop; returns the exit status. `api_key` is for engines that name no variable with theirs,
    `again` reads the configuration anew for a reload, if it came from a file. Raises ServingError."""
    with telemetry(config.gateway.tracing, environment) as told:
        gateway = Gateway(door_settings(config, environment), tracing=told.tracing, readers=told.readers)
        engines = Elsewhere(config, again, environment, gateway, api_key)
        listener = door.bind(config.gateway.host, config.gateway.port)
        try:
            with Signals.handled(say) as signals, engines.listening():
                async with door.open_door(gateway, listener), engines.watched():
                    say_door(say, gateway, door.url_of(listener))
                    engines.is_open = True
                    await signals.stop.wait()
                    engines.is_open = False
                    await door.drain(gateway, engines.config.gateway.drain_timeout_s, signals.hurry)
        finally:
            listener.close()
    return 0
