_base_ = 'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py'

# Starts from random weights, so that it builds without a download. To start from a trained classifier:
# init_cfg=dict(type='Pretrained', checkpoint='work_dirs/.../epoch_100.pth', prefix='backbone.')
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmext.FalconNet',
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    decode_head=dict(in_channels=[32, 64, 128, 256]),
    auxiliary_head=dict(in_channels=128),
)

train_dataloader = dict(batch_size=2)
