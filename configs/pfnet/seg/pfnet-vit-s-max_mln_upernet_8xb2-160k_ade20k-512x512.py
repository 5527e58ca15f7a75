_base_ = 'mmseg::vit/vit_deit-s16_mln_upernet_8xb2-160k_ade20k-512x512.py'

# The maps behind blocks 3, 6, 9 and 12, which the stock neck resizes to the strides 4, 8, 16 and 32.
model = dict(
    type='mmext.auto_channels',
    model='mmseg.EncoderDecoder',
    pretrained=None,
    backbone=dict(
        _delete_=True, type='mmext.PfNet', arch='ViT-S-max', out_norm=dict(type='mmext.LayerNorm2d', eps=1e-6)
    ),
    neck=dict(in_channels='auto'),
    decode_head=dict(in_channels='auto'),
    auxiliary_head=dict(in_channels='auto'),
)
