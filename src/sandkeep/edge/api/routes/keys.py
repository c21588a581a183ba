"""API keys."""

from fastapi import APIRouter, Response

from sandkeep.edge.api import shapes
from sandkeep.edge.api.services import Caller, Using
from sandkeep.wire.keys import KeyCreate, KeyCreated, KeyView
from sandkeep.wire.shape import Page

router = APIRouter(prefix="/v1/keys", tags=["keys"])


@router.get("")
async def list_keys(who: Caller, use: Using) -> Page[KeyView]:
    return Page(items=[shapes.key(found) for found in await use.keys.page(who.project_id)])


@router.post("", status_code=201)
async def create_key(asked: KeyCreate, who: Caller, use: Using) -> KeyCreated:
    """The secret is in this answer and nowhere else."""
    made, secret = await use.keys.create(who.project_id, asked.name)
    return KeyCreated(**shapes.key(made).model_dump(), secret=secret)


@router.delete("/{key_id}", status_code=204)
async def revoke_key(key_id: str, who: Caller, use: Using) -> Response:
    await use.keys.revoke(who.project_id, key_id)
    return Response(status_code=204)
