"""What the routes of the REST door work with."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from sandkeep.contracts.guest import Guest
from sandkeep.contracts.runner import Runner
from sandkeep.control.adoption import Adoption
from sandkeep.control.archives import Archives
from sandkeep.control.browse import Browse
from sandkeep.control.events import Events
from sandkeep.control.forks import Forks
from sandkeep.control.keys import Keys
from sandkeep.control.nodes import Nodes
from sandkeep.control.portable import Portable
from sandkeep.control.promotion import Promotion
from sandkeep.control.quarantine import Quarantine
from sandkeep.control.reach import Reach
from sandkeep.control.reconciler import Reconciler
from sandkeep.control.rehearsals import Rehearsals
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.control.snapshots import Snapshots
from sandkeep.control.templates import Templates
from sandkeep.control.timelines import Timelines
from sandkeep.domain.principal import Principal
from sandkeep.edge.gate.identity import Identity


@dataclass(frozen=True)
class Services:
    version: str
    identity: Identity
    keys: Keys
    sandboxes: Sandboxes
    reach: Reach
    templates: Templates
    snapshots: Snapshots
    timelines: Timelines
    forks: Forks
    promotion: Promotion
    browse: Browse
    archives: Archives
    portable: Portable
    rehearsals: Rehearsals
    events: Events
    reconciler: Reconciler
    nodes: Nodes
    adoption: Adoption
    quarantine: Quarantine
    runner: Runner
    guest: Guest


async def services_of(request: Request) -> Services:
    found = request.app.state.services
    assert isinstance(found, Services)
    return found


Using = Annotated[Services, Depends(services_of)]


async def caller(request: Request, services: Using) -> Principal:
    return await services.identity.principal(request)


Caller = Annotated[Principal, Depends(caller)]
