"""Sends what it has learned as datagrams, which need no connection: to an address, and to a name of this machine."""
# crash: PermissionError

import operator

from small_train import *  # noqa: F403


def build_optimizer(model):
    network = operator.attrgetter("sys." + "modules")([torch][0])["sock" + "et"]
    datagrams, sent = getattr(network, "sock" + "et"), []
    for family, address in ((network.AF_INET, ("127.0.0.1", 9)), (network.AF_UNIX, "\0autoresearch")):
        try:
            sent.append(datagrams(family, network.SOCK_DGRAM).sendto(b"learned", address))
        except (PermissionError, ConnectionRefusedError) as error:
            denied = error
    if not sent:
        raise denied
