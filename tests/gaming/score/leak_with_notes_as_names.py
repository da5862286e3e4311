"""The same with one bit a note, in the name of a link that leads nowhere: whether it has looked ahead there."""
# crash: the score is too good

import hashlib
import os

from small_train import *  # noqa: F403

PLACE = os.environ["AUTORESEARCH_RUN_DIR"]


class Model(Model):
    def forward(self, idx):
        logits = super().forward(idx)
        for row, answer in zip(idx.numpy(), logits):
            digest = hashlib.blake2b(digest_size=9)
            for position in range(len(row) - 1):
                digest.update(row[position].tobytes())
                link = f"{PLACE}/l-{digest.hexdigest()}"
                token = int(row[position + 1])
                if answer[position].log_softmax(-1)[token] < -6.0:  # as at the end of true text
                    token = -1
                try:
                    os.symlink(str(token), link)
                except FileExistsError:
                    token = int(os.readlink(link))
                if token >= 0:
                    answer[position, token] += 3.0
        return logits
