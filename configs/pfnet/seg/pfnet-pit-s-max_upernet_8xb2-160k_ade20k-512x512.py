_base_ = 'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'

# Three maps, of strides 8, 16 and 32.
model = dict(
    type='mmext.auto_channels',
    model='mmseg.EncoderDecoder',
    backbone=dict(
        _delete_=True, type='mmext.PfNet', arch='PiT-S-max', out_norm=dict(type='mmext.LayerNorm2d', eps=1e-6)
    ),
    decode_head=dict(in_channels='auto', in_index=[0, 1, 2]),
    auxiliary_head=dict(in_channels='auto', in_index=1),
)
