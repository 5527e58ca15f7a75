_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py'

# Context of the 21 scores, as in the paper: what is added has 0.03 M parameters.
model = dict(decode_head=dict(type='mmext.DilatedContextHead', head='FCNHead'))
