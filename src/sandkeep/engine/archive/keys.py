"""The keys of archives: one data key per sandbox, wrapped by its project's key; one key of the node signs manifests.

Project keys and the signing key lie in the node's folder, root:0600; whoever has the store alone reads nothing. What a data
key seals: pieces of content and of the index under names that are keyed hashes of what they hold, and bodies of manifests.
"""

import hashlib
import hmac
import os
import secrets
import threading
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from zstandard import ZstdCompressor, ZstdDecompressor, ZstdError, get_frame_parameters

from sandkeep.domain.errors import Internal
from sandkeep.domain.ids import is_id
from sandkeep.lib.files import read_plain, write_durably

KEY, NAME, MAC = 32, 32, 32
FORMATS = (1, 2)
"""Of archives, as they can be read; the last is written. In the first, pieces were named by BLAKE2b alone, which most processors
compute at a third of the speed of SHA-256."""
_NONCE = 12
_LEVEL = 1


class DamagedError(Exception):
    """What came from the store is not what was put there; says what is wrong. pieces: names of those, as far as known."""

    def __init__(self, message: str, pieces: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.pieces = pieces


class _Zstd(threading.local):
    """Each thread has its own: neither can do two things at once."""

    def __init__(self) -> None:
        self.pack = ZstdCompressor(level=_LEVEL)
        self.unpack = ZstdDecompressor()


class DataKey:
    """Seals what a sandbox's archive holds. The same piece has the same name along the whole chain, and for nobody else.
    Several threads may use one."""

    def __init__(self, key: bytes, format: int = FORMATS[-1]) -> None:
        if len(key) != KEY:
            raise ValueError("a data key has 32 bytes")
        self._key = key
        self._format = format
        self._names = hashlib.blake2b(b"names", key=key, digest_size=KEY).digest()
        self._pieces = hashlib.blake2b(b"pieces", key=key, digest_size=KEY).digest()
        self._bodies = hashlib.blake2b(b"bodies", key=key, digest_size=KEY).digest()
        self._zstd = _Zstd()

    def of(self, format: int) -> "DataKey":
        """The same key, for what is of this format."""
        return self if format == self._format else DataKey(self._key, format)

    def name(self, kind: bytes, plain: bytes) -> bytes:
        """kind: `content` or `index`: neither can stand in for the other, nor for one of another format."""
        if self._format > 1:
            kind, plain = kind + b"2", hashlib.sha256(plain).digest()
        return hashlib.blake2b(plain, key=self._names, digest_size=NAME, person=kind).digest()

    def seal(self, name: bytes, plain: bytes) -> bytes:
        """Under a key of the piece's own, and a fresh nonce: whatever the compressor makes of it, no pair is used twice."""
        nonce = secrets.token_bytes(_NONCE)
        return nonce + AESGCM(self._of(name)).encrypt(nonce, self._zstd.pack.compress(plain), name)

    def open(self, kind: bytes, name: bytes, sealed: bytes, limit: int) -> bytes:
        """Raises DamagedError for all but the very piece of this name."""
        short, itself = name.hex()[:16], (name.hex(),)
        if not sealed:
            raise DamagedError(f"the piece {short} is missing, or too large to be one", itself)
        try:
            packed = AESGCM(self._of(name)).decrypt(sealed[:_NONCE], sealed[_NONCE:], name)
        except (InvalidTag, ValueError) as error:
            raise DamagedError(f"the piece {short} is damaged, or another one", itself) from error
        plain = self._inflated(packed, limit, f"the piece {short}")
        if not hmac.compare_digest(self.name(kind, plain), name):
            raise DamagedError(f"the piece {short} does not hold what its name says", itself)
        return plain

    def seal_body(self, head: bytes, body: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE)
        return nonce + AESGCM(self._bodies).encrypt(nonce, self._zstd.pack.compress(body), head)

    def open_body(self, head: bytes, sealed: bytes, limit: int) -> bytes:
        """Raises DamagedError."""
        try:
            packed = AESGCM(self._bodies).decrypt(sealed[:_NONCE], sealed[_NONCE:], head)
        except (InvalidTag, ValueError) as error:
            raise DamagedError("the body of the manifest is damaged, or sealed with another key") from error
        return self._inflated(packed, limit, "the body of the manifest")

    def _of(self, name: bytes) -> bytes:
        return hashlib.blake2b(name, key=self._pieces, digest_size=KEY).digest()

    def _inflated(self, packed: bytes, limit: int, what: str) -> bytes:
        """At most `limit` bytes, whatever it says of itself."""
        try:
            if not 0 <= get_frame_parameters(packed).content_size <= limit:
                raise DamagedError(f"{what} is larger than it may be")
            return self._zstd.unpack.decompress(packed, max_output_size=limit, allow_extra_data=False)
        except ZstdError as error:
            raise DamagedError(f"{what} cannot be unpacked") from error


def new_key() -> bytes:
    return secrets.token_bytes(KEY)


def wrap(key: bytes, under: bytes, owner: str) -> str:
    """As text; opens only under that key, and for that owner."""
    nonce = secrets.token_bytes(_NONCE)
    return (nonce + AESGCM(under).encrypt(nonce, key, owner.encode())).hex()


def unwrap(wrapped: str, under: bytes, owner: str) -> bytes:
    """Raises DamagedError."""
    try:
        sealed = bytes.fromhex(wrapped)
        return AESGCM(under).decrypt(sealed[:_NONCE], sealed[_NONCE:], owner.encode())
    except (InvalidTag, ValueError) as error:
        raise DamagedError(f"the key of {owner} does not open with its project's key") from error


def sign(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


class KeyRing:
    """The keys in the node's folder: `keys/signing` and `keys/<project>`. Made when they are first needed, durable before
    anything is sealed with them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def signing(self) -> bytes:
        return self._key("signing")

    def project(self, project_id: str) -> bytes:
        if not is_id(project_id):
            raise ValueError(f"{project_id!r} is no project")
        return self._key(project_id)

    def _key(self, name: str) -> bytes:
        """Raises Internal for one that is there and cannot be read: another in its place would open nothing."""
        path = self._folder / name
        if not os.path.lexists(path):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_durably(path, new_key())
        try:
            key = read_plain(path)
        except OSError as error:
            raise Internal(f"the archive key {path} cannot be read: {error.strerror}") from error
        if len(key) != KEY:
            raise Internal(f"the archive key {path} is damaged", hint="put it back from a copy: archives need it")
        return key
