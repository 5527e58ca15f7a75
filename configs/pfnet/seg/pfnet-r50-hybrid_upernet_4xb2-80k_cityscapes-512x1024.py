_base_ = 'mmseg::upernet/upernet_r50_4xb2-80k_cityscapes-512x1024.py'

# Starts from random weights, so that it builds without a download. output_stride=8 dilates convolutions and pools.
model = dict(
    type='mmext.auto_channels',
    model='mmseg.EncoderDecoder',
    pretrained=None,
    backbone=dict(
        _delete_=True, type='mmext.PfNet', arch='R50-hybrid', norm_cfg=dict(type='SyncBN', requires_grad=True)
    ),
    decode_head=dict(in_channels='auto'),
    auxiliary_head=dict(in_channels='auto'),
)
