# mmpretrain's vision transformer in the place of mmseg's. Tests slide a square window, for a grid of tokens is square.
_base_ = 'mmseg::vit/vit_deit-s16_upernet_8xb2-80k_ade20k-512x512.py'

model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmext.swap_layers',
        model='mmpretrain.VisionTransformer',
        arch='deit-tiny',
        img_size=512,
        patch_size=16,
        out_indices=(2, 5, 8, 11),
        out_type='featmap',
        drop_path_rate=0.1,
        rules=[dict(layer='MultiheadAttention', to=dict(type='mmext.GaussianMixtureAttention', num_extra_tokens=1))],
    ),
    neck=None,
    decode_head=dict(in_channels=[192] * 4, num_classes=150),
    auxiliary_head=dict(in_channels=192, num_classes=150),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
