_base_ = 'mmseg::fcn/fcn_r50-d8_4xb2-80k_cityscapes-512x1024.py'

# The authors' decoder. Its last layer, 1 x 1 to the classes, is the stock head.
model = dict(
    type='mmext.auto_channels',
    model='mmseg.EncoderDecoder',
    pretrained=None,
    backbone=dict(_delete_=True, type='mmext.WaveMix', arch='192-L3'),
    neck=dict(type='mmext.WaveMixDecoder', in_channels='auto', channels=(128, 64)),
    decode_head=dict(in_channels=64, in_index=0, channels=64, num_convs=0, concat_input=False, dropout_ratio=0),
    auxiliary_head=None,
)
