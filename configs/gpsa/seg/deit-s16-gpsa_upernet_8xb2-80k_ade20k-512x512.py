# mmpretrain's vision transformer in the place of mmseg's. Tests slide a square window, for a grid of tokens is square.
_base_ = 'mmseg::vit/vit_deit-s16_mln_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmext.swap_layers',
        model='mmpretrain.VisionTransformer',
        arch='deit-small',
        img_size=512,
        patch_size=16,
        out_indices=(2, 5, 8, 11),
        out_type='featmap',
        drop_path_rate=0.1,
        rules=[dict(layer='MultiheadAttention', first=10, to=dict(type='mmext.GPSA', num_extra_tokens=1))],
    ),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
