"""Who may do what: who a caller is, which methods and runs he may use, and the certificates that the service shows."""

from actstore_service.access.access import Access
from actstore_service.access.principals import Principal, Role

__all__ = ["Access", "Principal", "Role"]
