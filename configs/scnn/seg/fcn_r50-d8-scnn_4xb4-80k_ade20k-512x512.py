_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py'

# Messages pass through the last map, reduced to the authors' 128 channels. The auxiliary head sees the one before it, reduced.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(out_indices=(2, 3)),
    neck=dict(type='mmext.SCNN', in_channels=(1024, 2048), out_channels=128, levels=(1,), norm_cfg=norm_cfg),
    decode_head=dict(in_channels=128, in_index=1),
    auxiliary_head=dict(in_channels=128, in_index=0),
)
