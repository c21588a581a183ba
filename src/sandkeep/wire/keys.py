"""API keys on the wire."""

from datetime import datetime

from sandkeep.wire.shape import Asked, Given, ShortText


class KeyCreate(Asked):
    name: ShortText


class KeyView(Given):
    id: str
    name: str
    prefix: str
    created_at: datetime
    revoked_at: datetime | None = None


class KeyCreated(KeyView):
    """`secret` is shown this once."""

    secret: str
