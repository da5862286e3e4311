"""Sends what it has learned to another machine."""
# crash: PermissionError

import operator

from small_train import *  # noqa: F403


def build_optimizer(model):
    network = operator.attrgetter("sys." + "modules")([torch][0])["sock" + "et"]
    network.create_connection(("127.0.0.1", 9))
