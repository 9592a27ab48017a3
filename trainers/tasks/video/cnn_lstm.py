"""CNN + LSTM: a 2D backbone per frame, or an MLP on its joints, and an LSTM over time (Donahue et al., CVPR 2015), in
torchvision's registry."""

from torch import Tensor, nn

from trainers.tasks.backbones import build_backbone
from trainers.tasks.small_net import SMALL
from trainers.tasks.timm_models import Size
from trainers.tasks.video.sequence_model import Skeletons
from trainers.torch_compat import register_model


class CNNLSTM(nn.Module):
    """Clips [B, 3, T, H, W], float, normalised for the backbone -> logits [B, classes] of the mean over the LSTM's outputs.

    ``joints``: J, D of skeletons, if clips are skeletons [B, T, J, D]; the backbone is not used then. Raises InputError as
    `build_backbone` does.
    """

    def __init__(
        self, num_classes: int, *, backbone: str, weights: str, hidden: int, dropout: float, size: Size | None = None,
        joints: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone: nn.Module
        if joints:
            self.backbone = Skeletons(joints)
            features = self.backbone.features
        else:
            self.backbone, features = build_backbone(backbone, weights, size=size)
        self.lstm = nn.LSTM(features, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        frames = clips if clips.ndim == 4 else clips.transpose(1, 2)  # [B, T, ...]
        features = self.backbone(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])  # [B, T, F]
        outputs, _ = self.lstm(self.dropout(features))
        logits: Tensor = self.fc(self.dropout(outputs.mean(dim=1)))
        return logits


@register_model
def cnn_lstm(
    *, weights: str | None = None, num_classes: int = 101, backbone: str = SMALL, hidden: int = 256, dropout: float = 0.5,
    size: Size | None = None, joints: tuple[int, int] | None = None,
) -> CNNLSTM:  # fmt: skip
    """Build a CNN + LSTM; ``weights`` and ``size``: the backbone's, as of `build_backbone`."""
    return CNNLSTM(
        num_classes, backbone=backbone, weights=weights or "", hidden=hidden, dropout=dropout, size=size, joints=joints
    )
