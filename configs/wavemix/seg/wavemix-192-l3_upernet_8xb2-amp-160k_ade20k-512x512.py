_base_ = 'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'

# One map of stride 4 becomes the strides 4, 8, 16, 32.
model = dict(
    type='mmext.auto_channels',
    model='mmseg.EncoderDecoder',
    backbone=dict(_delete_=True, type='mmext.WaveMix', arch='192-L3'),
    neck=dict(type='mmext.SimpleFPN', in_channels='auto', out_channels=256, scales=(1, 1 / 2, 1 / 4, 1 / 8)),
    decode_head=dict(in_channels='auto'),
    auxiliary_head=dict(in_channels='auto'),
)
optim_wrapper = dict(
    constructor='mmext.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.9, norm_decay_mult=0.0),
)
