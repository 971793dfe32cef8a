"""jacobians"""
