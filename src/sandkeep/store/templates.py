"""Templates in the database."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from sandkeep.domain.errors import AlreadyExists
from sandkeep.domain.template import Template, TemplatePhase
from sandkeep.store.tables import templates as table


def _row(template: Template) -> dict[str, Any]:
    row = asdict(template)
    row.pop("labels")
    return {**row, "steps": list(template.steps)}


def _template(row: Any) -> Template:
    return Template(
        id=row.id,
        project_id=row.project_id,
        name=row.name,
        phase=TemplatePhase(row.phase),
        created_at=row.created_at,
        size=row.size,
        parent=row.parent,
        steps=tuple(row.steps),
        reason=row.reason,
        log=row.log,
    )


async def add(connection: AsyncConnection, template: Template) -> None:
    """Raises AlreadyExists when the name is taken."""
    try:
        await connection.execute(insert(table).values(_row(template)))
    except IntegrityError as error:
        raise AlreadyExists(
            f"a template named {template.name} exists", hint="delete it first, or choose another name"
        ) from error


async def save(connection: AsyncConnection, template: Template) -> None:
    await connection.execute(update(table).where(table.c.id == template.id).values(_row(template)))


async def get(connection: AsyncConnection, project_id: str, reference: str) -> Template | None:
    row = (
        await connection.execute(
            select(table).where(
                table.c.project_id == project_id, or_(table.c.id == reference, table.c.name == reference)
            )
        )
    ).first()
    return _template(row) if row else None


async def page(connection: AsyncConnection, project_id: str) -> list[Template]:
    rows = await connection.execute(select(table).where(table.c.project_id == project_id).order_by(table.c.name))
    return [_template(row) for row in rows]


async def everywhere(connection: AsyncConnection) -> list[Template]:
    return [_template(row) for row in await connection.execute(select(table))]


async def remove(connection: AsyncConnection, template_id: str) -> None:
    await connection.execute(delete(table).where(table.c.id == template_id))
