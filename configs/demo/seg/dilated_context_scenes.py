# A coarse segmentor with context, which starts as the plain one.
_base_ = '../_base_/fcn_scenes.py'

model = dict(decode_head=dict(type='mmext.DilatedContextHead', head='FCNHead', where='features'))
