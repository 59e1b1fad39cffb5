"""The sessions there are: created, taken up from the log, listed, deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from backchannel.errors import BackchannelError, Reason
from backchannel.host.clock import SECOND_NS
from backchannel.host.faults import draining_error
from backchannel.host.filtering import parse
from backchannel.host.live import LiveSession, Resources
from backchannel.host.paging import from_token, to_token
from backchannel.host.questions import check_session
from backchannel.host.residents import Residents
from backchannel.log.protocol import LIST_BYTES, not_found
from backchannel.session.configuration import config_digest, effective_config
from backchannel.session.forks import forked
from backchannel.session.session import Session
from backchannel.session.table import Phase
from backchannel.session.validation import check_config
from backchannel.v1 import conversation_service_pb2 as pb
from backchannel.v1 import frame_pb2, session_pb2

_logger = structlog.get_logger(__name__)

DEFAULT_PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 200


@dataclass(frozen=True, slots=True)
class Created:
    """What became of a wish for a session.

    Attributes:
        live: The session.
        duplicate: It was there already, created with the same configuration.
        receipt: For the frame that asked for it.
    """

    live: LiveSession
    duplicate: bool
    receipt: frame_pb2.Receipt


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody asks for who creates a session.

    Attributes:
        config: As the client sent it.
        digest: Of all that makes two wishes the same.
        frame_id: Of the frame that asks, if one does.
        fork: Whose past it begins with.
    """

    config: session_pb2.SessionConfig
    digest: bytes
    frame_id: str
    fork: pb.Fork | None


class Sessions:
    """All sessions of a log. Doors find here what they speak to.

    Attributes:
        leaving: The host is, so that none is created any more.

    Args:
        residents: Those in memory.
        resources: What they share.
        ids: Makes unguessable ids from a prefix.
    """

    def __init__(
        self, residents: Residents, resources: Resources, ids: Callable[[str], str]
    ) -> None:
        self.leaving = False
        self._residents = residents
        self._resources = resources
        self._log = resources.log
        self._clock = resources.clock
        self._config = resources.config
        self._ids = ids
        self._loading = asyncio.Semaphore(resources.config.parallel_loads)
        self._count: int | None = None

    # --- to have one -------------------------------------------------------------------------

    async def get(self, session_id: str) -> LiveSession:
        """The session, taken up from the log if need be.

        Raises:
            BackchannelError: `SESSION_NOT_FOUND`, `LOG_UNAVAILABLE`, `LOG_CORRUPT`,
                `SESSIONS_FULL` (all of memory is taken by sessions at work).
        """
        return await self._residents.get(session_id, self._load)

    async def _load(self, session_id: str) -> LiveSession:
        async with self._loading:
            core = await self._resources.loader.load(session_id)
        if core is None:
            raise not_found()
        if core.state.phase is Phase.CLOSED:
            # Its deletion was cut short.
            await self._retire(session_id)
            raise not_found()
        if not core.active:  # One that is at work must be taken up, whatever it takes.
            self._residents.make_room()
        live = LiveSession(core, self._resources, committed_seq=core.state.last_seq)
        self._residents.add(live)
        live.recover()
        return live

    async def list(
        self,
        page_size: int,
        page_token: str,
        filter: str,  # noqa: A002 - the contract's word
    ) -> tuple[list[session_pb2.Session], str]:
        """A page of sessions, newest first, and the token of the next page (empty on the last).

        Without the histories that they were created with. May have fewer sessions than it could.

        Args:
            page_size: How many at most; 0 for a usual number.
            page_token: As the page before gave it; empty for the first.
            filter: Which; see `filtering`.

        Raises:
            BackchannelError: `FIELD_OUT_OF_RANGE`, `FIELD_INVALID` for a bad filter or token,
                `FIELD_TOO_LONG`.
        """
        if page_size > MAX_PAGE_SIZE:
            raise BackchannelError(
                Reason.FIELD_OUT_OF_RANGE, f"must be at most {MAX_PAGE_SIZE}", field="page_size"
            )
        labels = parse(filter)
        size = page_size or DEFAULT_PAGE_SIZE
        lines = await self._log.list(
            before=from_token(page_token), limit=size + 1, labels=labels, max_bytes=LIST_BYTES
        )
        # Large ones make a page short, and then nobody has looked whether there are more.
        full = sum(len(line.session) for line in lines) >= LIST_BYTES
        sessions = []
        for line in lines[:size]:
            view = session_pb2.Session.FromString(line.session)
            live = self._residents.find(line.session_id)
            if live is not None:
                try:
                    view = await live.view(history=False)
                except BackchannelError:
                    _logger.info("listed_as_logged")  # As it was when last all was well.
            sessions.append(view)
        if len(lines) <= size and not full:
            return sessions, ""
        last = lines[:size][-1]
        return sessions, to_token(last.update_time_ns, last.session_id)

    # --- to make one -------------------------------------------------------------------------

    async def create(
        self,
        config: session_pb2.SessionConfig,
        *,
        frame_id: str = "",
        fork: pb.Fork | None = None,
    ) -> Created:
        """A new session, or the one that was created with this very configuration and id.

        Args:
            config: As the client sent it.
            frame_id: Of the `Open` that asks, if one does.
            fork: Whose past it begins with.

        Raises:
            BackchannelError: What is wrong with the configuration; `SESSION_EXISTS`,
                `SESSION_ID_RETIRED`, `SESSIONS_FULL`, `DRAINING`, `LOG_UNAVAILABLE`.
        """
        if self.leaving:
            raise draining_error()
        check_config(config)
        digest = config_digest(config, fork)
        wish = Wish(config, digest, frame_id, fork)
        residents = self._residents
        if not config.session_id:
            # A guess at an id that nobody else can make needs no look into the log.
            session_id = self._ids("session")
            live = await residents.work(session_id, self._create(session_id, wish))
            return _created(live, frame_id, duplicate=False)
        session_id = config.session_id
        await residents.quiet(session_id)
        known = residents.find(session_id)
        duplicate = known is not None
        if known is None:
            live, duplicate = await residents.work(
                session_id, self._find_or_create(session_id, wish)
            )
        else:
            live = known
        if duplicate and not live.config_matches(digest):
            raise BackchannelError(
                Reason.SESSION_EXISTS,
                "there is a session of this id with another configuration;"
                " resume it, or choose a new id",
                field="session_id",
            )
        return _created(live, frame_id, duplicate=duplicate)

    async def _find_or_create(self, session_id: str, wish: Wish) -> tuple[LiveSession, bool]:
        if await self._log.retired_until_ns(session_id) > self._clock.now_ns():
            raise BackchannelError(
                Reason.SESSION_ID_RETIRED,
                "a session of this id was deleted or has expired within the last day;"
                " choose a new id",
                field="session_id",
            )
        if await self._log.load(session_id) is not None:
            return await self._load(session_id), True
        return await self._create(session_id, wish), False

    async def _create(self, session_id: str, wish: Wish) -> LiveSession:
        config = wish.config
        if wish.fork is not None:
            config = await self._forked(config, wish.fork)
        full_name = check_session(self._resources.runner.engines, config)
        if self._count is None:
            self._count = await self._log.count()
        if self._count >= self._config.max_sessions:
            raise BackchannelError(
                Reason.SESSIONS_FULL,
                f"this server holds {self._count} sessions already; delete some that are over",
            )
        self._residents.make_room()
        core, decision = Session.create(
            effective_config(config, model=full_name, session_id=session_id),
            session_id=session_id,
            config_digest=wish.digest,
            frame_id=wish.frame_id,
            now_ns=self._clock.now_ns(),
            ids=self._ids,
            expire_after_ns=round(self._config.expire_after_s * SECOND_NS),
        )
        live = LiveSession(core, self._resources, committed_seq=0)
        self._residents.add(live)
        self._count += 1
        live.open(decision)
        try:
            await live.ledger.commit()
        except BackchannelError as error:
            # It never was. Should the log have it after all, it is found there.
            self._count -= 1
            self._residents.remove(live)
            live.forget(error)
            raise
        return live

    async def _forked(
        self, config: session_pb2.SessionConfig, fork: pb.Fork
    ) -> session_pb2.SessionConfig:
        """The configuration of a session that begins with another one's past."""
        if fork.session_id == config.session_id or not fork.session_id:
            raise BackchannelError(
                Reason.FIELD_INVALID, "name another session", field="fork.session_id"
            )
        try:
            parent = await self.get(fork.session_id)
        except BackchannelError as error:
            if error.reason is Reason.SESSION_NOT_FOUND:
                raise BackchannelError(
                    Reason.SESSION_NOT_FOUND,
                    "there is no such session to fork; check the id",
                    field="fork.session_id",
                ) from error
            raise
        await parent.ledger.commit()
        core = await self._resources.loader.load(fork.session_id, fork.at_seq)
        if core is None:
            raise not_found()
        return forked(config, core.state)

    # --- to be rid of one --------------------------------------------------------------------

    async def delete(self, session_id: str, reason: str = "DELETED") -> None:
        """End a session, tell its readers, and delete its log.

        Args:
            session_id: Which.
            reason: Why, for `SessionClosed`.

        Raises:
            BackchannelError: `SESSION_NOT_FOUND`, `LOG_UNAVAILABLE`.
        """
        await self._residents.quiet(session_id)
        await self._residents.work(session_id, self._delete(session_id, reason))

    async def _delete(self, session_id: str, reason: str) -> None:
        live = self._residents.find(session_id)
        if live is None:
            # Nobody reads it and nothing runs, so nobody would hear of an ending.
            if not await self._is_logged(session_id):
                raise not_found()
            await self._retire(session_id)
            return
        try:
            await live.close(reason)
            await self._retire(session_id)
        finally:
            if live.closed_seq:
                self._residents.remove(live)
                live.forget(not_found())

    async def _is_logged(self, session_id: str) -> bool:
        try:
            return await self._log.load(session_id) is not None
        except BackchannelError as error:
            if error.reason is Reason.LOG_CORRUPT:
                return True  # What cannot be read can still be deleted.
            raise

    async def _retire(self, session_id: str) -> None:
        """Delete its log; nobody can have its id for a while."""
        until_ns = self._clock.now_ns() + round(self._config.retired_s * SECOND_NS)
        await self._log.delete(session_id, until_ns)
        if self._count is not None:
            self._count -= 1


def _created(live: LiveSession, frame_id: str, *, duplicate: bool) -> Created:
    status = frame_pb2.RECEIPT_STATUS_DUPLICATE if duplicate else frame_pb2.RECEIPT_STATUS_ACCEPTED
    return Created(live, duplicate, frame_pb2.Receipt(frame_id=frame_id, status=status, seq=1))
