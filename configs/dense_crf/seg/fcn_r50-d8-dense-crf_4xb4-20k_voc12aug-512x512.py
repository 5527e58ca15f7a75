_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py'

# Training is the stock one. A test, or a stock checkpoint, is refined.
model = dict(type='mmext.DenseCRFSegmentor', model='EncoderDecoder')
