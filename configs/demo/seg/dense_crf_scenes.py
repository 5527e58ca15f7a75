# A coarse segmentor, and a dense CRF that finds the borders at test time.
_base_ = '../_base_/fcn_scenes.py'

model = dict(
    type='mmext.DenseCRFSegmentor',
    model='EncoderDecoder',
    crf=dict(iterations=5, appearance_weight=6.0, appearance_sigma=6.0, color_sigma=12.0, smoothness_weight=0.0),
)
