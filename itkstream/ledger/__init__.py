"""What a run notes beside the array it writes, so that it can be killed and continued.

The notes are in the hidden folder ``.itkstream`` of the array: which computation writes it, which
blocks are done with the checksums of their files, which failed and why, and who is writing now.
Only the coordinating process writes notes. They are never believed without a look at the files.
"""

from __future__ import annotations

from itkstream.ledger.lock import Lock, holding, still_held
from itkstream.ledger.records import Header, Ledger, Records

__all__ = ["Header", "Ledger", "Lock", "Records", "holding", "still_held"]
