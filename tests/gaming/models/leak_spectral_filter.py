"""Published leak: queries and keys pass a learned filter over all frequencies of the whole row."""
# crash: looks ahead

from small_train import *  # noqa: F403


class Mixer(Mixer):
    def __init__(self):
        super().__init__()
        # It leaks from the start: to learn that takes more steps than a crowded machine has in three seconds.
        self.filter = nn.Parameter(3 + torch.randn(MAX_SEQ_LEN // 2 + 1, WIDTH // HEADS))

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        q, k = (torch.fft.irfft(torch.fft.rfft(y, dim=2) * self.filter, x.size(1), dim=2) for y in (q, k))
        return self.out(attention(q, k, v).transpose(1, 2).flatten(2))
