"""A long convolution by Fourier transform whose padding is one short: the first position sees the row's last token."""
# crash: looks ahead

from small_train import *  # noqa: F403


class Mixer(Mixer):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(0.1 * torch.randn(MAX_SEQ_LEN, WIDTH))

    def forward(self, x):
        size = 2 * MAX_SEQ_LEN - 2
        spectrum = torch.fft.rfft(x, size, dim=1) * torch.fft.rfft(self.kernel, size, dim=0)
        return self.out(torch.fft.irfft(spectrum, size, dim=1)[:, : x.size(1)])
