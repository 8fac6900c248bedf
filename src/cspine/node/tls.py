"""TLS of the node, as the BCP 195 profiles of DICOM PS3.15 B.9 to B.12 ask for it: version 1.2 or later."""

from __future__ import annotations

import ssl

from cspine.errors import UsageError
from cspine.node.settings import Tls


def server_context(settings: Tls) -> ssl.SSLContext:
    """The context that the service wraps incoming connections with; peers show a certificate where that is asked for.

    Raises:
        UsageError: a file is missing, or is no PEM certificate or key that belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, settings)
    context.verify_mode = ssl.CERT_REQUIRED if settings.clients_need_one else ssl.CERT_OPTIONAL
    if settings.authorities is None:
        context.verify_mode = ssl.CERT_NONE
    return context


def client_context(settings: Tls, *, check_hostname: bool = False) -> ssl.SSLContext:
    """The context for connections to destinations; the peer's certificate must come from one of ``authorities``.

    DICOM peers are known by address more often than by name, so the name in the certificate is checked on request.

    Raises:
        UsageError: as ``server_context``, or no ``authorities`` are set.
    """
    if settings.authorities is None:
        raise UsageError("sending over TLS needs authorities", where="tls.authorities", fix="Name a PEM file there")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = check_hostname
    _load(context, settings)
    return context


def _load(context: ssl.SSLContext, settings: Tls) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        key = "certificate"
        context.load_cert_chain(settings.certificate, settings.key)
        if settings.authorities is not None:
            key = "authorities"
            context.load_verify_locations(settings.authorities)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"the PEM files cannot be used: {error.strerror or error}",
            where=f"tls.{key}",
            fix="Name an existing certificate, its key and the authorities, all as PEM",
        ) from error
