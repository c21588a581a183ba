"""Between the wire and our words."""

import base64
import binascii
from datetime import UTC, datetime
from typing import Literal

from sandkeep.contracts.guest import ExecRequest, ExecResult
from sandkeep.control.adoption import Candidate
from sandkeep.control.changes import Changes
from sandkeep.domain.capability import RuntimeCapabilities
from sandkeep.domain.errors import InvalidArgument
from sandkeep.domain.event import Event
from sandkeep.domain.names import check_env, check_labels, check_user
from sandkeep.domain.node import Quarantined
from sandkeep.domain.principal import Key
from sandkeep.domain.quantities import parse_duration, parse_size
from sandkeep.domain.receipt import Receipt
from sandkeep.domain.restart import OnFailure
from sandkeep.domain.sandbox import (
    Commit,
    Lifetime,
    Limits,
    NetworkMode,
    OnExpiry,
    Persistence,
    RuntimeKind,
    Sandbox,
    Spec,
    default_commit,
    default_on_failure,
)
from sandkeep.domain.snapshot import Snapshot, SnapshotKind
from sandkeep.domain.template import Template
from sandkeep.domain.timeline import SnapshotSizes, Timeline
from sandkeep.domain.why import Explanation
from sandkeep.edge.api import timelines
from sandkeep.wire import events, keys, platform, sandboxes, snapshots, templates

TRUSTED_ONLY = "trusted code only"


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def spec(asked: sandboxes.SandboxCreate) -> Spec:
    """Raises InvalidArgument."""
    persistence = Persistence(asked.persistence)
    return Spec(
        template=asked.template,
        template_name=asked.template,
        runtime=RuntimeKind(asked.runtime),
        persistence=persistence,
        limits=Limits(asked.cpus, parse_size(asked.memory, "memory"), parse_size(asked.disk, "disk"), asked.pids),
        env=asked.env,
        labels=asked.labels,
        network=NetworkMode(asked.network),
        lifetime=Lifetime(
            None if asked.ttl is None else parse_duration(asked.ttl, "ttl"),
            OnExpiry(asked.on_expiry),
            None if asked.grace is None else parse_duration(asked.grace, "grace"),
        ),
        pause_or_disk=asked.pause_or_disk,
        on_failure=OnFailure(asked.on_failure) if asked.on_failure else default_on_failure(persistence),
        commit=Commit(asked.commit) if asked.commit else default_commit(persistence),
        timeline=timelines.asked_for(asked.timeline) if asked.timeline else Timeline(),
    )


def changes(asked: sandboxes.SandboxPatch, current: Lifetime) -> Changes:
    lifetime = None
    if asked.model_fields_set & {"ttl", "on_expiry"}:
        ttl = current.ttl
        if "ttl" in asked.model_fields_set:
            ttl = None if asked.ttl is None else parse_duration(asked.ttl, "ttl")
        lifetime = Lifetime(ttl, OnExpiry(asked.on_expiry or current.on_expiry), current.grace)
    return Changes(
        labels=None if asked.labels is None else check_labels(asked.labels),
        cpus=asked.cpus,
        memory=None if asked.memory is None else parse_size(asked.memory, "memory"),
        disk=None if asked.disk is None else parse_size(asked.disk, "disk"),
        pids=asked.pids,
        lifetime=lifetime,
        pause_or_disk=asked.pause_or_disk,
        on_failure=None if asked.on_failure is None else OnFailure(asked.on_failure),
    )


def sandbox(found: Sandbox) -> sandboxes.SandboxView:
    spec, status = found.spec, found.status
    return sandboxes.SandboxView(
        id=found.id,
        name=found.name,
        project_id=found.project_id,
        template=spec.template_name,
        template_id=spec.template,
        runtime=spec.runtime.value,
        trust=TRUSTED_ONLY if spec.runtime is RuntimeKind.RUNC else "untrusted code",
        persistence=spec.persistence.value,
        cpus=spec.limits.cpus,
        memory=spec.limits.memory,
        disk=spec.limits.disk,
        pids=spec.limits.pids,
        env=spec.env,
        labels=spec.labels,
        network=spec.network.value,
        ttl=spec.lifetime.ttl,
        on_expiry=spec.lifetime.on_expiry.value,
        expires_at=None if found.expires_at is None else moment(found.expires_at),
        pause_or_disk=spec.pause_or_disk,
        on_failure=spec.on_failure.value,
        commit=spec.commit.value if spec.commit else None,
        timeline=timelines.rules(spec.timeline),
        failures=found.restarts.failures,
        restart_at=None if found.restarts.next_at is None else moment(found.restarts.next_at),
        phase=status.phase.value,
        hold=status.hold.value if status.hold else None,
        reason=status.reason,
        since=moment(status.since),
        conditions=[
            sandboxes.ConditionView(kind=c.kind.value, value=c.value, reason=c.reason, at=moment(c.at))
            for c in status.conditions
        ],
        created_at=moment(found.created_at),
        updated_at=moment(found.updated_at),
    )


def why(found: Sandbox, answer: Explanation) -> sandboxes.WhyView:
    return sandboxes.WhyView(
        sandbox_id=found.id,
        name=found.name,
        phase=found.status.phase.value,
        doing=answer.doing,
        since=moment(answer.since),
        because=list(answer.because),
        next=[
            sandboxes.NextStep(what=step.what, at=None if step.at is None else moment(step.at)) for step in answer.next
        ],
        can=[sandboxes.Remedy(command=remedy.command, what=remedy.what) for remedy in answer.can],
    )


def receipt(found: Receipt) -> sandboxes.ReceiptView:
    checks = [sandboxes.CheckView(name=one.name, ok=one.ok, detail=one.detail) for one in found.checks]
    return sandboxes.ReceiptView(event=found.event, at=moment(found.at), checks=checks)


def exec_request(asked: sandboxes.ExecRequest) -> ExecRequest:
    """Raises InvalidArgument."""
    argv = tuple(asked.command) if isinstance(asked.command, list) else ("/bin/bash", "-l", "-c", asked.command)
    if not argv or not argv[0] or any("\0" in part for part in argv):
        raise InvalidArgument("the command is empty or contains a NUL character", field="command")
    stdin = (asked.stdin or "").encode()
    if asked.stdin_encoding == "base64":
        try:
            stdin = base64.b64decode(asked.stdin or "", validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidArgument("stdin is not base64", field="stdin") from error
    timeout = None if asked.timeout is None else parse_duration(asked.timeout, "timeout")
    if timeout is not None and not 0 < timeout <= 30 * 86400:
        raise InvalidArgument("timeout is not between 0 and 30 days", field="timeout")
    return ExecRequest(
        argv=argv,
        user=check_user(asked.user) if asked.user else None,
        cwd=asked.cwd,
        env=check_env(asked.env),
        timeout=timeout,
        stdin=stdin,
    )


def exec_answer(done: ExecResult) -> sandboxes.ExecAnswer:
    stdout, stdout_encoding = _text(done.stdout)
    stderr, stderr_encoding = _text(done.stderr)
    return sandboxes.ExecAnswer.model_construct(
        exit_code=done.exit_code,
        signal=done.signal,
        stdout=stdout,
        stderr=stderr,
        stdout_encoding=stdout_encoding,
        stderr_encoding=stderr_encoding,
        truncated=done.truncated,
        timed_out=done.timed_out,
        out_of_memory=done.out_of_memory,
        duration=done.duration,
        pid=done.pid,
    )


def _text(data: bytes) -> tuple[str, Literal["text", "base64"]]:
    try:
        return data.decode(), "text"
    except UnicodeDecodeError:
        return base64.b64encode(data).decode(), "base64"


def event(found: Event) -> events.EventView:
    return events.EventView(
        seq=found.seq, at=moment(found.at), kind=found.kind, subject=found.subject, reason=found.reason, data=found.data
    )


def template(found: Template) -> templates.TemplateView:
    return templates.TemplateView(
        id=found.id,
        name=found.name,
        project_id=found.project_id,
        phase=found.phase.value,
        reason=found.reason,
        parent=found.parent,
        steps=list(found.steps),
        size=found.size,
        log=found.log[-4096:],
        created_at=moment(found.created_at),
    )


def snapshot(found: Snapshot, sizes: SnapshotSizes | None = None) -> snapshots.SnapshotView:
    size = sizes.sizes.get(found.id) if sizes else None
    return snapshots.SnapshotView(
        id=found.id,
        sandbox_id=found.sandbox_id,
        project_id=found.project_id,
        name=found.name,
        kind=found.kind.value,
        tags=list(found.tags),
        parent=found.parent,
        held=found.held,
        connections_reset=found.kind is SnapshotKind.FULL and found.held > 0,
        reason=found.reason,
        cause=found.cause.value,
        written=size.written if size else None,
        freed=size.freed if size else None,
        measured_at=moment(sizes.at) if sizes and size else None,
        archived=found.archived,
        created_at=moment(found.created_at),
    )


def key(found: Key) -> keys.KeyView:
    return keys.KeyView(
        id=found.id,
        name=found.name,
        prefix=found.prefix,
        created_at=moment(found.created_at),
        revoked_at=None if found.revoked_at is None else moment(found.revoked_at),
    )


def candidate(found: Candidate) -> platform.AdoptionView:
    spec, observed = found.on_node.spec, found.observed
    return platform.AdoptionView(
        id=found.id,
        name=found.name,
        name_on_node=found.on_node.name,
        phase=observed.phase.value,
        hold=observed.hold.value if observed.hold else None,
        runtime=spec.runtime.value,
        persistence=spec.persistence.value,
        template=spec.template_name,
        labels=spec.labels,
        epoch=observed.epoch,
        notes=list(found.notes),
        held=found.held,
    )


def quarantined(found: Quarantined) -> platform.QuarantinedView:
    return platform.QuarantinedView(
        id=found.id,
        what=found.what,
        owner=found.owner,
        size=found.size,
        changed_at=None if found.changed_at is None else moment(found.changed_at),
        template=found.template,
        limit=found.limit,
        generations=list(found.generations),
    )


def runtime(found: RuntimeCapabilities) -> platform.RuntimeView:
    return platform.RuntimeView(
        name=found.kind,
        available=found.available,
        reason=found.reason,
        version=found.version,
        isolation=found.isolation,
        trust=TRUSTED_ONLY if found.trusted_code_only else "untrusted code",
        persistence=sorted(found.persistence),
        holds=sorted(found.holds),
        unsupported=found.unsupported,
        notes=list(found.notes),
    )
